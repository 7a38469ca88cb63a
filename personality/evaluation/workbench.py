"""One model in memory that takes on one personality after another: for searches, which measure many and keep none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from personality.changing_model import ChangingModel
from personality.evaluation.measure import measure
from personality.evaluation.measured import Measured
from personality.evaluation.suite import Probe
from personality.manifests.errors import DataError
from personality.manifests.evaluation import ProbeResult
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import threads_for


class Workbench(ChangingModel):
    """Measures personalities of a repository with one suite; what was measured before is not measured again.

    Args:
        repository: where; its base is loaded when something has to be measured.
        probes: what to measure.
        on_probe: see `measure`.

    Raises:
        DataError: when there are no probes.
    """

    def __init__(
        self,
        repository: Repository,
        probes: Sequence[Probe],
        *,
        on_probe: Callable[[int, int, str], None] | None = None,
    ) -> None:
        if not probes:
            raise DataError(
                "this repository has no probes, so there is nothing to measure",
                "add [[probes]] to behaviors/NAME.toml (docs/evaluation.md shows how), or try `persona playground DIR`",
            )
        super().__init__(repository)
        self.probes = list(probes)
        self.measured = 0
        """Personalities of which this object measured a probe that was not known before."""
        self.store = Measured(repository)
        self._on_probe = on_probe
        self._known: dict[str, tuple[ProbeResult, ...]] = {}

    def measure(self, personality: Personality, *, again: bool = False) -> tuple[ProbeResult, ...]:
        """What the probes give, each result with its rows' outcomes; finished probes are kept at once.

        Args:
            personality: any recipe on the repository's base; it need not be a version.
            again: measure even what was measured before.

        Raises:
            IncompatibleError, NotFoundError, CorruptError: when it cannot be composed.
            PersonaError: when it has fallen apart, or a judge gives no verdicts.
        """
        if again or personality.id not in self._known:
            known = {} if again else self.store.recall(personality.id, self.probes)
            missing = [probe for probe in self.probes if probe.name not in known]
            if missing:
                known |= self._measure(personality, missing)
            self._known[personality.id] = tuple(known[probe.name] for probe in self.probes)
        return self._known[personality.id]

    def _measure(self, personality: Personality, probes: list[Probe]) -> dict[str, ProbeResult]:
        def keep(probe: Probe, result: ProbeResult) -> None:
            self.store.keep(personality.id, probe, result)

        with self.taking(personality) as (model, tokenizer), threads_for(model):
            results = measure(model, tokenizer, probes, on_probe=self._on_probe, on_result=keep)
        self.measured += 1
        return {result.probe: result for result in results}
