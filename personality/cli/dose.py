"""`persona dose`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output, percent
from personality.cli.tables import change_text

if TYPE_CHECKING:
    from personality.searching.dose import DoseCurve

_WIDTH = 41
_MARKS = {"push_back": "p", "general": "g"}


@examples(
    "persona dose listening 0..1.5",
    "persona dose listening@2 0..2 --points 9 --version v4",
    "persona dose warm -1..1 --dry-run --json",
)
def dose(
    behavior: Annotated[str, typer.Argument(help="NAME, in use or not, or NAME@N.")],
    span: Annotated[str, typer.Argument(metavar="A..B", help="Lowest and highest scale.")] = "0..1.5",
    points: Annotated[int, typer.Option(min=2, help="Scales to measure, both ends included.")] = 7,
    version: Annotated[str, typer.Option(help="In whose recipe; the other uses stay.")] = "head",
    goal: Annotated[
        str, typer.Option(help="What the behavior is for.", show_default="its own probes without the push-back side")
    ] = "",
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of each probe.", show_default="all")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do not write the range into the manifest.")] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Measure a behavior at one scale after another, and write the range that holds together into its manifest.

    Text holds together while general ability is within 2 points of scale 0, general text is at most twice as
    perplexing, and replies repeat themselves no more than a fifth more.
    """
    from personality.manifests.names import VectorLabel
    from personality.searching.dose import dose as measure_doses
    from personality.searching.dose import parse_span, suggest

    out = Output("dose", as_json=as_json)
    repository = open_repository(directory)
    wanted = parse_span(span)
    history, found = find_version(out, repository, version)
    done, text = 0, ""
    with out.progress(f"dose {behavior}") as advance:

        def on_point(number: int, scale: float) -> None:
            nonlocal done, text
            done, text = number, f"scale {scale:g}"
            advance(done, points, text)

        curve = measure_doses(
            repository,
            VectorLabel.parse(behavior),
            wanted,
            found,
            points=points,
            goal=goal,
            rows=rows,
            on_point=on_point,
            on_probe=lambda step, steps, what: advance(done + step / steps, points, f"{text}: {what}"),
        )
    if curve.suggested is not None and not dry_run:
        suggest(repository, curve.label, curve.suggested)
    out.result(_as_json(found.id, curve, not dry_run), lambda: _show(out, history.label(found), curve))
    if curve.suggested is None:
        out.note("no range is suggested, and the manifest stays as it was")
    elif not dry_run:
        out.note(f"written into the manifest of {curve.label}; `persona undo` takes it back")


def _show(out: Output, label: str, curve: DoseCurve) -> None:
    names = list(dict.fromkeys(name for point in curve.points for name in point.values))
    out.line(f"{curve.label} in the recipe of {label}", "bold")
    rows = []
    for point in curve.points:
        cells = [percent(point.values[name].value) if name in point.values else "–" for name in names]
        change = change_text(point.changes[curve.goal]) if curve.goal in point.changes else "–"
        repetition = percent(point.repetition) if point.repetition is not None else "–"
        perplexity = f"{point.perplexity:.2f}" if point.perplexity is not None else "–"
        holds = "; ".join(point.faults) or "yes"
        rows.append((f"  {point.scale:g}", *cells, change, repetition, perplexity, holds))
    figures = [">effect (95% interval)", ">repeats", ">perplexity", "holds together"]
    out.table(["  scale", *(f">{name}" for name in names), *figures], rows)
    out.line()
    width = max(len(f"{point.scale:g}") for point in curve.points)
    out.line(f"  {'':{width}} 0%{'50%':^{_WIDTH - 4}}100%")
    for point in curve.points:
        marks = {name: point.values[name].value for name in reversed(names) if name in point.values}
        out.line(f"  {point.scale:>{width}g} {_strip(marks, curve.goal)} {'✗' if point.faults else '✓'}")
    legend = [f"● {curve.goal}", *(f"{_MARKS[name]} {name}" for name in names if name in _MARKS and name != curve.goal)]
    out.line(f"  {', '.join(legend)}; ✗ does not hold together")
    out.line()
    if curve.coherent is None:
        out.line("  not even the smallest dose holds together")
    else:
        out.line(f"  holds together from {curve.coherent[0]:g} to {curve.coherent[1]:g}")
    if curve.suggested is not None:
        out.line(
            f"  suggested: {curve.suggested[0]:g} to {curve.suggested[1]:g}, where an effect is shown as well", "bold"
        )
    elif curve.coherent is not None:
        out.line("  no difference shown in that range, or no general text to tell by: nothing is suggested")


def _strip(marks: dict[str, float], goal: str) -> str:
    """One line of the plot: a mark at each value; of marks at the same place the goal's is seen."""
    cells = ["·"] * _WIDTH
    for name, value in marks.items():
        cells[round(value * (_WIDTH - 1))] = "●" if name == goal else _MARKS.get(name, "o")
    return "".join(cells)


def _as_json(version: str, curve: DoseCurve, written: bool) -> dict[str, Any]:
    return {
        "version": version,
        "vector": curve.label,
        "goal": curve.goal,
        "points": [
            {
                "scale": point.scale,
                "values": {name: figure.as_json() for name, figure in point.values.items()},
                "changes": {name: figure.as_json() for name, figure in point.changes.items()},
                "repetition": point.repetition,
                "perplexity": point.perplexity,
                "coherent": not point.faults,
                "faults": list(point.faults),
            }
            for point in curve.points
        ],
        "coherent": curve.coherent,
        "suggested": curve.suggested,
        "written": written and curve.suggested is not None,
    }
