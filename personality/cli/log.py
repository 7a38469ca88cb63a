"""`persona log`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent
from personality.cli.tables import change_text, interval
from personality.manifests.canonical import short
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.evaluation.trends import Point
    from personality.manifests.repository import Repository
    from personality.manifests.version import Version

_BARS = "▁▂▃▄▅▆▇█"
_DIGITS = "0123456789"


@examples("persona log", "persona log -n 5", "persona log --effect --measure --rows 30", "persona log --json")
def log(
    count: Annotated[
        int | None, typer.Option("-n", min=1, help="Show only the newest so many.", show_default="all")
    ] = None,
    effect: Annotated[
        bool, typer.Option("--effect", help="Also show how each behavior went, as far as it was measured.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --effect: evaluate the versions that were not yet.")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of each probe for --effect.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """List the versions, newest first: what changed and why, and with --effect what it did."""
    from personality.versions.history import History
    from personality.versions.recipe import compare_recipes

    out = Output("log", as_json=as_json)
    if (measure or rows is not None) and not effect:
        raise UsageError("--measure and --rows belong to --effect", "add `--effect`")
    repository = open_repository(directory)
    history = History(repository)
    newest = list(reversed(history.versions.values()))[:count]
    entries = []
    for version in newest:
        parent = history.versions[version.parents[0]] if version.parents else None
        changes = compare_recipes(parent.personality, version.personality) if parent else []
        entries.append((version, [str(change) for change in changes]))
    found = _effects(out, repository, newest[::-1], rows, measure=measure) if effect else {}

    def human() -> None:
        lines = []
        for version, changes in entries:
            tags = history.tags_of(version)
            label = history.label(version) + (f" ({', '.join(tags)})" if tags else "")
            what = "; ".join(changes) or str(version.personality)
            lines.append((label, version.time[:16].replace("T", " "), version.message, what, short(version.id)))
        out.table(["version", "time (UTC)", "message", "change", "id"], lines)
        if effect:
            first, last = history.label(newest[-1]), history.label(newest[0])
            _show_effects(out, found, f"{first} → {last}")

    data: dict[str, Any] = {
        "versions": [
            {
                **version.as_json(),
                "label": history.label(version),
                "tags": history.tags_of(version),
                "changes": changes,
            }
            for version, changes in entries
        ]
    }
    if effect:
        data["effects"] = {name: [_point_json(point) for point in points] for name, points in found.items()}
    out.result(data, human)


def _effects(
    out: Output, repository: Repository, versions: list[Version], rows: int | None, *, measure: bool
) -> dict[str, list[Point]]:
    """Points of each goal, oldest version first."""
    from personality.evaluation.evaluate import evaluate
    from personality.evaluation.suite import read_suite
    from personality.evaluation.trends import trends
    from personality.evaluation.workbench import Workbench

    probes = read_suite(repository, rows=rows)
    if measure:
        with out.progress("measure") as advance:
            bench = Workbench(repository, probes)
            for number, version in enumerate(versions):
                advance(number, len(versions), version.label)
                evaluate(repository, version, probes=probes, bench=bench)
    return trends(repository, versions, probes)


def _show_effects(out: Output, found: dict[str, list[Point]], span: str) -> None:
    lines = []
    for name, points in found.items():
        measured = [point for point in points if point.value is not None]
        if not measured:
            lines.append((name, sparkline(points), "", "", "", "not measured"))
            continue
        value, change = measured[-1].value, measured[-1].change
        assert value is not None
        lowest = min(point.value.value for point in measured if point.value is not None)
        shown = change_text(change) if change else ""
        lines.append((name, sparkline(points), percent(value.value), interval(value), percent(lowest), shown))
    out.line()
    out.table(["goal", span, ">latest", ">95% interval", ">lowest", ">latest change (95% interval)"], lines)
    scale = "▁ 0% to █ 100%" if _bars() else "0 below 10% to 9 from 90%"
    out.line(f"{scale}, a gap where it was not measured with the probes of now · ≈ no difference shown")
    if any(point.value is None for points in found.values() for point in points):
        out.note("`persona log --effect --measure` measures what is missing")


def sparkline(points: list[Point]) -> str:
    """One character a version, on a scale from 0 to 1: bars, or digits where these cannot or should not be shown."""
    marks = _BARS if _bars() else _DIGITS
    gap = " " if _bars() else "."
    values = [point.value.value if point.value else None for point in points]
    return "".join(
        gap if value is None else marks[min(int(max(value, 0.0) * len(marks)), len(marks) - 1)] for value in values
    )


def _bars() -> bool:
    return "NO_COLOR" not in os.environ and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _point_json(point: Point) -> dict[str, object]:
    return {
        "version": point.version,
        "value": point.value.as_json() if point.value else None,
        "change": point.change.as_json() if point.change else None,
    }
