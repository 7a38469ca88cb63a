"""`persona status`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, enter, examples, open_repository
from personality.cli.output import Output
from personality.cli.steering_lines import kind_text


@examples("persona status", "persona status -C ../assistant", "persona status --server http://127.0.0.1:8000")
def status(
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Which version this server serves, and whether it answers as that does.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> int:
    """Show what is in use, what differs from the newest version, and what is missing.

    With --server: which version a server serves. Exit code 3 when it does not answer as that version, or cannot be
    compared.
    """
    from personality.versions.state import repository_state

    out = Output("status", as_json=as_json)
    if server is not None:
        from personality.cli.server_lines import show_server

        enter(directory)
        return show_server(out, server)
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
    return 0
