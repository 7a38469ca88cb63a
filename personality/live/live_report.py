"""What became of a run's snapshots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["published", "held", "passed over", "failed"]


@dataclass(frozen=True)
class SnapshotEvent:
    """What became of one snapshot.

    Attributes:
        label: such as `live:listening:step-20`.
        step: after which it was taken, from 1.
        outcome: `published`; `held` because the guard had a warning; `passed over` because the one before was still
            under way, or the run had ended; `failed`, and the server serves what it did before.
        text: why, where it was not published.
        time: ISO 8601 in UTC, when that was decided.
        version: id of the version that the server was told; empty where there is none.
        composing: seconds to compose and write it, and to compute what it answers.
        switching: seconds that the server took to switch.
        verifying: seconds to ask it whether it is what it should be.
        steps_behind: steps that the run had taken since, when the server switched.
    """

    label: str
    step: int
    outcome: Outcome
    text: str
    time: str
    version: str = ""
    composing: float = 0.0
    switching: float = 0.0
    verifying: float = 0.0
    steps_behind: int = 0


@dataclass(frozen=True)
class LiveReport:
    """How a run was served while it went on.

    Attributes:
        url: of the server.
        before: label of what it served before the run.
        after: label of what it serves now, as far as is known.
        snapshots: what became of each, in order.
        stopped: the guard's sign, where it stopped the run.
        problem: why the server could not be taken to where it belongs; empty when it was.
        taking: seconds by which snapshots held up the training.
    """

    url: str
    before: str
    after: str
    snapshots: tuple[SnapshotEvent, ...]
    stopped: str = ""
    problem: str = ""
    taking: float = 0.0

    @property
    def published(self) -> tuple[SnapshotEvent, ...]:
        """Those that were served."""
        return tuple(item for item in self.snapshots if item.outcome == "published")

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)
