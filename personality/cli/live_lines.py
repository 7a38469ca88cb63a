"""How a run was served while it went on, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personality.cli.output import Output

if TYPE_CHECKING:
    from personality.live.live_report import LiveReport


def show_live(out: Output, report: LiveReport, indent: str) -> None:
    """What was published when, what was not and why, and what the server serves now."""
    many = len(report.published)
    out.line(
        f"{indent}served meanwhile by {report.url}: {many} snapshot{'' if many == 1 else 's'}, for which the training "
        f"paused {report.taking:.2f} s in all"
    )
    if report.snapshots:
        out.table(
            [f"{indent}snapshot", "at", ">composed s", ">switched s", ">verified s", ">steps behind", ""],
            [
                (
                    f"{indent}{item.label}",
                    item.time[11:19],
                    *(
                        (f"{item.composing:.2f}", f"{item.switching:.2f}", f"{item.verifying:.2f}")
                        if item.outcome == "published"
                        else ("", "", "")
                    ),
                    str(item.steps_behind) if item.outcome == "published" else "",
                    f"{item.outcome}: {item.text}" if item.text else item.outcome,
                )
                for item in report.snapshots
            ],
        )
    if report.stopped:
        out.line(
            f"{indent}the guard stopped the run ({report.stopped}): nothing after the last good snapshot was served"
        )
    if report.after:
        same = " again, as before the run" if report.after == report.before else ""
        out.line(f"{indent}the server serves {report.after}{same}")
