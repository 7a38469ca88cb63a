"""`persona status`."""

from __future__ import annotations

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output
from personality.cli.steering_lines import kind_text


@examples("persona status", "persona status -C ../assistant", "persona status --json")
def status(as_json: JsonOption = False, directory: DirectoryOption = None) -> None:
    """Show what is in use, what differs from the newest version, and what is missing."""
    from personality.versions.state import repository_state

    out = Output("status", as_json=as_json)
    repository = open_repository(directory)
    state = repository_state(repository)

    kinds = {item.id: kind_text(item) for item in repository.manifests()} if state.working.uses else {}

    def human() -> None:
        out.line(f"{repository.root.name} at {' and '.join(state.tips)}", "bold")
        out.line(f"  base         {state.working.base}")
        out.line(f"  composition  {state.working.composition}")
        if state.working.uses:
            out.table(
                ["  vector", ">scale", "layers", "density", "kind"],
                [
                    (
                        f"  {u.label}",
                        f"{u.scale:g}",
                        str(u.layers or ("its own" if kinds.get(u.vector, "").startswith("steering") else "all")),
                        "" if u.density is None else f"{u.density:g}",
                        kinds.get(u.vector, "missing"),
                    )
                    for u in state.working.uses
                ],
            )
        else:
            out.line("  nothing in use: the base alone")
        for change in state.unsaved:
            out.line(f"  unsaved: {change}", "yellow")
        for problem in state.problems:
            out.line(f"  problem: {problem}", "red")
        if len(state.tips) > 1:
            out.note(
                "several newest versions, as after a git merge: `persona save -m …` records one on top of them all"
            )
        elif state.unsaved:
            out.note(f"`persona save -m …` records the edits, `persona restore {state.tips[0]}` drops them")
        for behavior in dict.fromkeys(state.unfinished):
            out.note(f"an unfinished training run: `persona train {behavior} --resume` goes on with it")
        if state.interrupted:
            out.note(f"{state.interrupted} leftovers of interrupted commands: `persona gc` removes them")

    out.result(
        {
            "tips": state.tips,
            "personality": state.working.as_json(),
            "unsaved": [change.as_json() for change in state.unsaved],
            "problems": state.problems,
            "interrupted": state.interrupted,
            "unfinished": state.unfinished,
        },
        human,
    )
