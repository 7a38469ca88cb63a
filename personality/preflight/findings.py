"""What a preflight found, and the verdict that follows from it."""

from __future__ import annotations

from typing import Any, Literal

from personality.manifests.record import Frozen

Level = Literal["note", "change", "no-go"]
Verdict = Literal["go", "go with changes", "no-go"]


class Finding(Frozen):
    """One thing worth knowing before training.

    Attributes:
        level: "note" only informs, "change" asks for something to be done, "no-go" says that training will not give
            what is wanted.
        name: short and stable, such as `near-duplicates`.
        text: what was found, with the values.
        advice: what mends it, with the flag or command; empty for a note that asks for nothing.
    """

    level: Level
    name: str
    text: str
    advice: str = ""


class Preflight(Frozen):
    """The result of a preflight.

    Attributes:
        verdict: the worst of the findings: "no-go", "go with changes", or "go" when there are notes at most.
        findings: worst first.
        figures: everything measured, plain JSON: estimates with their 95% intervals, log-probabilities in nats a token.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    figures: dict[str, Any]

    def of_level(self, level: Level) -> tuple[Finding, ...]:
        """The findings of one level."""
        return tuple(finding for finding in self.findings if finding.level == level)


def conclude(findings: list[Finding], figures: dict[str, Any]) -> Preflight:
    """Put findings in order and draw the verdict.

    Args:
        findings: in any order; those of a level stay in theirs.
        figures: everything measured, plain JSON.
    """
    order: tuple[Level, ...] = ("no-go", "change", "note")
    levels = {finding.level for finding in findings}
    verdict: Verdict = "no-go" if "no-go" in levels else "go with changes" if "change" in levels else "go"
    ranked = tuple(sorted(findings, key=lambda finding: order.index(finding.level)))
    return Preflight(verdict=verdict, findings=ranked, figures=figures)
