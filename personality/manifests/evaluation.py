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


class Sampling(Frozen):
    """How replies were sampled: so many for each row, at a temperature, from a seed."""

    samples: int
    temperature: float
    seed: int


class ProbeResult(Frozen):
    """What one probe gave.

    Attributes:
        probe: such as `listening.accept`.
        passed: share of greedy replies that pass, 0 to 1 (Wilson interval).
        probability: probability of opening the reply the wanted way, 0 to 1 (bootstrap interval), where declared; for
            a scorer `label` that of the right label.
        margin: mean log-probability per token of preferred minus rejected replies, in nats (bootstrap interval),
            where the rows have both.
        outcomes, probabilities: row by row, the ground for paired comparison.
        margins: of the rows that have both replies, in their order.
        digest: of the probe as it was asked; empty in evaluations that were made before it was kept.
        sampled: mean over rows of the share of sampled replies that pass (bootstrap over rows), where declared.
        shares: that share, row by row.
        sampling: how they were sampled.
        grade: mean of a judge's grades of greedy replies, 0 to 1 (bootstrap interval), where it gives grades.
        grades: row by row.
        bypass: share of rows where the displaced habit comes when it is asked for (Wilson interval), where declared.
        bypasses: row by row.
    """

    probe: str
    passed: Figure
    probability: Figure | None = None
    margin: Figure | None = None
    outcomes: tuple[bool, ...] = ()
    probabilities: tuple[float, ...] = ()
    margins: tuple[float, ...] = ()
    digest: str = ""
    sampled: Figure | None = None
    shares: tuple[float, ...] = ()
    sampling: Sampling | None = None
    grade: Figure | None = None
    grades: tuple[float, ...] = ()
    bypass: Figure | None = None
    bypasses: tuple[bool, ...] = ()


class HealthResult(Frozen):
    """How a version does on held-out general text and on the base's own replies; see `evaluation/health.py`.

    Every figure but `kl_95` is a mean over rows (bootstrap interval), and the values row by row stand beside it.

    Attributes:
        digest: of the text and of how it was measured.
        nll: −log p per token of the held-out text, nats; perplexity is its exponential.
        kl: KL(base ‖ version) per token of the base's own greedy replies, nats.
        kl_95: 95th percentile of that over all tokens, nats (bootstrap over rows).
        repetition: share of 4-grams of the version's greedy replies that occurred in the reply before.
        distinct_1, distinct_2: different words and pairs of tokens of a reply, divided by their number.
        ended: share of greedy replies that end by themselves (Wilson interval).
        rows: by the figure's name.
    """

    digest: str
    nll: Figure
    kl: Figure
    kl_95: Figure
    repetition: Figure
    distinct_1: Figure
    distinct_2: Figure
    ended: Figure
    rows: dict[str, tuple[float, ...]]


class Measurement(Record):
    """One probe's result on one personality in one environment; file `.persona/measured/<id>.json`, a cache."""

    noun: ClassVar[str] = "measurement"
    mend: ClassVar[str] = "remove it: `rm FILE`; it is measured again"

    id: str
    result: ProbeResult

    @classmethod
    def key(cls, personality: str, environment: dict[str, str], probe: str) -> str:
        """The id: two measurements with the same key are of the same thing.

        Args:
            personality: its id.
            environment: of the build.
            probe: its digest, which holds scorer, sampling and seed.
        """
        return digest({"personality": personality, "environment": environment, "probe": probe})


class HarnessResult(Frozen):
    """One metric of one task of the lm-evaluation-harness.

    Attributes:
        task, metric: their names there.
        figure: mean over documents (bootstrap interval; Wilson's where each is 0 or 1).
        values: document by document.
    """

    task: str
    metric: str
    figure: Figure
    values: tuple[float, ...]


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
    health: HealthResult | None = None
    harness: tuple[HarnessResult, ...] = ()

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
