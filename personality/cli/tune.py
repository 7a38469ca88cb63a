"""`persona tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, find_version, open_repository
from personality.cli.output import Output, percent
from personality.cli.tables import change_text

if TYPE_CHECKING:
    from personality.manifests.study import HeldOut, Trial
    from personality.searching.tuning import Tuned
    from personality.versions.changes import Recorded
    from personality.versions.history import History


@examples(
    "persona tune v4 --maximize listening,concise",
    "persona tune head --maximize listening,warm --subject-to general>=-2%,push_back>=0.9 --trials 100",
    'persona tune v4 --maximize listening --subject-to general>=-2% --take -m "gentler" --json',
)
def tune(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")] = "head",
    maximize: Annotated[
        list[str] | None,
        typer.Option(help="Goals, with commas between.", show_default="the behaviors in use that have probes"),
    ] = None,
    subject_to: Annotated[
        list[str] | None,
        typer.Option(
            help="`general>=-2%` (points against the base) or `push_back>=0.9` (share), with commas between.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Recipes to try.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the search, and of which rows are held out.")] = 0,
    rows: Annotated[int | None, typer.Option(min=2, help="Rows of each probe.", show_default="all")] = None,
    take: Annotated[bool, typer.Option("--take", help="Record the recipe even when it is not shown to be better.")] = (
        False
    ),
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Search the scales, the density and the method that keep every behavior, and record what was found.

    One half of each probe's rows is for the search; the other half judges. A version is recorded, with the study
    beside it, when the recipe is shown to be better there. What was measured is kept: the same command goes on after an
    interruption.
    """
    from personality.evaluation.goals import goals_of
    from personality.evaluation.suite import read_suite
    from personality.searching import tuning
    from personality.searching.constraint import parse_constraints

    out = Output("tune", as_json=as_json)
    repository = open_repository(directory)
    constraints = parse_constraints(subject_to or ())
    history, found = find_version(out, repository, version)
    goals = [name.strip() for text in maximize or () for name in text.split(",")]
    if not goals:
        known = goals_of(read_suite(repository))
        goals = [use.behavior for use in found.personality.uses if use.behavior in known]
    done, text = 0, "the recipe as it was"
    with out.progress("tune") as advance:

        def on_trial(number: int, _: Trial | None) -> None:
            nonlocal done, text
            done, text = number - 1, f"recipe {number}/{trials}"

        tuned = tuning.tune(
            repository,
            found,
            goals,
            constraints,
            trials=trials,
            seed=seed,
            rows=rows,
            on_trial=on_trial,
            on_probe=lambda step, steps, what: advance(done + step / steps, trials + 1, f"{text}: {what}"),
        )
    recorded = tuning.take(repository, tuned, message) if tuned.held_out.beats or take else None
    out.result(_as_json(tuned, recorded), lambda: _show(out, history, tuned, recorded))


def _show(out: Output, history: History, tuned: Tuned, recorded: Recorded | None) -> None:
    front = [trial for trial in tuned.trials if trial.front]
    goals, limits = tuned.study.maximize, tuned.study.subject_to
    out.line(f"{len(tuned.trials)} recipes, {len(front)} on the front, by the rows that were for the search:", "bold")
    shown = sorted(front, key=lambda trial: -trial.smallest)
    shown += [trial for trial in (tuned.chosen, tuned.trials[0]) if trial not in shown]
    rows = []
    for trial in shown:
        mark = "→ " * (trial.number == tuned.chosen.number) + "was" * (trial.number == 0)
        cells = [f"{percent(trial.values[goal])} ({trial.retention[goal]:.0%})" for goal in goals]
        slack = [f"{trial.slack[name] * 100:+.1f}" for name in limits]
        rows.append((f"  {mark}".rstrip(), _recipe(trial), *cells, *slack))
    out.table(["  ", "recipe", *(f">{goal}" for goal in goals), *(f">{name}" for name in limits)], rows)
    out.line("  in brackets the retention: 100% is all of the vector's effect alone at scale 1")
    if limits:
        out.line("  below a constraint: points to spare")
    out.line()
    _show_held_out(out, history.label(history.versions[tuned.study.tuned]), tuned.held_out)
    out.line()
    if recorded is None:
        out.line("nothing was recorded; `--take` records the recipe all the same")
    elif not recorded.new:
        out.line(f"nothing to change: the repository is at {recorded.label}")
    else:
        out.line(f"{recorded.label}  {recorded.version.message}", "bold")
        for change in recorded.changes:
            out.line(f"  {change}")
        out.line(f"  the study: studies/{recorded.version.id}.json")


def _show_held_out(out: Output, label: str, held_out: HeldOut) -> None:
    verdict = "better than" if held_out.beats else "not shown to be better than"
    out.line(f"on held-out rows {verdict} {label} as it was: {held_out.reason}", "bold")
    rows = [
        ("  smallest retention", f"{held_out.before:.0%}", f"{held_out.after:.0%}", change_text(held_out.change)),
        *((f"  {name}", "", "", change_text(change)) for name, change in held_out.goals.items()),
        *(
            (f"  {name}, to spare", f"{slack * 100:+.1f}", f"{held_out.slack_after[name] * 100:+.1f}", "")
            for name, slack in held_out.slack_before.items()
        ),
    ]
    out.table(["  ", f">{label}", ">found", ">change (95% interval)"], rows)


def _recipe(trial: Trial) -> str:
    scales = ", ".join(f"{name} {scale:g}" for name, scale in trial.scales.items())
    method = trial.composition.method
    return f"{scales}; {method}" + (f" {trial.composition.density:g}" if method == "ties" else "")


def _as_json(tuned: Tuned, recorded: Recorded | None) -> dict[str, Any]:
    study = tuned.study.as_json()
    del study["version"], study["format"]
    return {
        **study,
        "recorded": {"version": recorded.version.id, "label": recorded.label} if recorded is not None else None,
    }
