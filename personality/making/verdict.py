"""The plain verdict on a training run: too small, right, too large, or forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from personality.making.health import Health
from personality.manifests.evaluation import ProbeResult
from personality.vectors.training.run import TrainingReport

Verdict = Literal["too small", "right", "too large", "forgetting", "unknown"]


@dataclass(frozen=True)
class Judgment:
    """What to think of a run.

    Attributes:
        verdict: in a word; "unknown" when nothing was measured.
        advice: what was seen and what to do, in sentences.
    """

    verdict: Verdict
    advice: tuple[str, ...]


def judge(
    before: Sequence[ProbeResult],
    after: Sequence[ProbeResult],
    health_before: Health | None,
    health_after: Health | None,
    report: TrainingReport,
) -> Judgment:
    """Judge a run by what it changed."""
    if report.sign is not None:
        return Judgment("too large", (report.sign.text,))
    return Judgment("unknown", ())
