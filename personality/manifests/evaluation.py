"""An evaluation: what a version was measured to do."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from personality.manifests.canonical import digest
from personality.manifests.record import Frozen, Record


class Figure(Frozen):
    """One measured figure.

    Attributes:
        value: the estimate.
        low, high: 95% interval.
        n: number of probes it rests on.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def shows_change(self) -> bool:
        """For a difference of shares: whether its interval, rounded to tenths of a point, leaves out 0."""
        return round(self.low * 100, 1) > 0 or round(self.high * 100, 1) < 0


class ProbeResult(Frozen):
    """What one probe gave.

    Attributes:
        probe: such as `listening.accept`.
        passed: share of greedy replies that pass, 0 to 1 (Wilson interval).
        probability: probability of opening the reply the wanted way, 0 to 1 (bootstrap interval), where declared.
        margin: mean log-probability per token of preferred minus rejected replies, in nats (bootstrap interval),
            where the rows have both.
        outcomes, probabilities: row by row, the ground for paired comparison.
    """

    probe: str
    passed: Figure
    probability: Figure | None = None
    margin: Figure | None = None
    outcomes: tuple[bool, ...] = ()
    probabilities: tuple[float, ...] = ()


class Evaluation(Record):
    """Results attached to version + build environment + suite + seed; file `evals/<version>/<id>.json`."""

    noun: ClassVar[str] = "evaluation"
    mend: ClassVar[str] = "remove it: `rm FILE`; `persona eval` measures again"

    id: str
    version: str
    personality: str
    environment: dict[str, str]
    suite: str
    seed: int
    results: tuple[ProbeResult, ...]
    time: str

    @classmethod
    def key(cls, personality: str, environment: dict[str, str], suite: str, seed: int) -> str:
        """The id: two runs with the same key measure the same thing."""
        return digest({"personality": personality, "environment": environment, "suite": suite, "seed": seed})

    @model_validator(mode="after")
    def _id_is_key(self) -> Self:
        if self.id != self.key(self.personality, self.environment, self.suite, self.seed):
            raise ValueError("its id does not follow from its fields: it was changed")
        return self

    def result(self, probe: str) -> ProbeResult | None:
        """The result of a probe, or None."""
        return next((item for item in self.results if item.probe == probe), None)
