"""`persona bisect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent

if TYPE_CHECKING:
    from personality.searching.bisect import Bisection, Look
    from personality.versions.history import History


@examples(
    "persona bisect push_back --good v2 --bad v9",
    "persona bisect listening.accept --good v2 --threshold 0.8",
    "persona bisect general --good base --bad head --json",
)
def bisect(
    probe: Annotated[str, typer.Argument(help="What broke: `push_back`, `general`, a behavior, or one probe.")],
    good: Annotated[str, typer.Option(help="A version where it works.", show_default=False)],
    bad: Annotated[str, typer.Option(help="A later version where it is broken.")] = "head",
    threshold: Annotated[
        float | None,
        typer.Option(help="Share (0-1) from which it is good.", show_default="the middle between the two versions"),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=2, help="Rows of each probe to begin with; near the threshold they are doubled.")
    ] = 12,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Find the version that broke a probe, by composing few versions in memory.

    Versions that cannot be composed are skipped. What was measured is kept: the same command goes on after an
    interruption.
    """
    from personality.searching.bisect import bisect as search
    from personality.versions.history import History

    out = Output("bisect", as_json=as_json)
    repository = open_repository(directory)
    history = History(repository)
    with out.progress("measure") as advance:
        found = search(
            repository,
            probe,
            good,
            bad,
            threshold=threshold,
            first_rows=rows,
            on_look=lambda look: out.note(f"{history.label(look.version)}: {_verdict(look)}"),
            on_probe=advance,
        )
    out.result(_as_json(history, found), lambda: _show(out, history, found))


def _verdict(look: Look) -> str:
    if look.verdict == "skipped":
        return f"skipped: {look.reason}"
    if look.reason:
        return f"{look.verdict}: {look.reason}"
    return look.verdict if look.sure else f"{look.verdict} (≈ near the threshold)"


def _show(out: Output, history: History, found: Bisection) -> None:
    rows = []
    for look in sorted(found.looks, key=lambda look: look.version.number):
        value = percent(look.value.value) if look.value else "–"
        above = (
            f"{look.above.value * 100:+.1f} [{look.above.low * 100:+.1f}, {look.above.high * 100:+.1f}]"
            if look.above
            else ""
        )
        rows.append((history.label(look.version), value, above, str(look.rows or ""), _verdict(look)))
    limit = "the middle" if found.threshold is None else percent(found.threshold)
    out.table(["version", f">{found.goal.name}", f">from {limit} (95% interval)", ">rows", "verdict"], rows)
    out.line()
    if found.culprit is None:
        names = ", ".join(history.label(version) for version in found.candidates)
        out.line(f"one of these broke `{found.goal.name}`: {names}", "bold")
        out.line("  the skipped ones among them cannot be told apart")
    for version in found.candidates:
        verb = "broke it" if found.culprit else "may have"
        out.line(f"{history.label(version)} {verb}: {version.message}", "bold")
        for parent in version.parents:
            if len(version.parents) > 1:
                out.line(f"  against {history.label(history.versions[parent])}:")
            for change in found.changes[version.id, parent]:
                out.line(f"  {change}")


def _as_json(history: History, found: Bisection) -> dict[str, Any]:
    return {
        "goal": found.goal.name,
        "probes": list(found.goal.probes),
        "threshold": found.threshold,
        "culprit": found.culprit.id if found.culprit else None,
        "candidates": [
            {
                "version": version.id,
                "label": history.label(version),
                "message": version.message,
                "changes": {
                    parent: [change.as_json() for change in found.changes[version.id, parent]]
                    for parent in version.parents
                },
            }
            for version in found.candidates
        ],
        "looks": [
            {
                "version": look.version.id,
                "label": history.label(look.version),
                "verdict": look.verdict,
                "sure": look.sure,
                "rows": look.rows,
                "value": look.value.as_json() if look.value else None,
                "above": look.above.as_json() if look.above else None,
                "reason": look.reason,
            }
            for look in found.looks
        ],
    }
