"""One model in memory that takes on one personality after another: for searches, which measure many and keep none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from personality.changing_model import ChangingModel
from personality.environment import build_environment, tool_versions
from personality.evaluation.measure import measure
from personality.evaluation.suite import Probe, suite_digest
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import DataError, PersonaError
from personality.manifests.evaluation import Evaluation, ProbeResult
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.manifests.transaction import now
from personality.model import device, threads_for

_SEED = 0


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
                "add [[probes]] to behaviors/NAME.toml (docs/on-disk.md shows how), or try `persona playground DIR`",
            )
        super().__init__(repository)
        self.probes = list(probes)
        self.measured = 0
        """Personalities that were measured by this object, and not known before."""
        self._on_probe = on_probe
        self._suite = suite_digest(self.probes)
        self._environment = {**build_environment(device()), "transformers": tool_versions()["transformers"]}
        self._folder = repository.local / "measured"
        self._known: dict[str, tuple[ProbeResult, ...]] = {}

    def measure(self, personality: Personality) -> tuple[ProbeResult, ...]:
        """What the probes give, each result with its rows' outcomes.

        Args:
            personality: any recipe on the repository's base; it need not be a version.

        Raises:
            IncompatibleError, NotFoundError, CorruptError: when it cannot be composed.
            PersonaError: when it has fallen apart.
        """
        key = Evaluation.key(personality.id, self._environment, self._suite, _SEED)
        if key not in self._known:
            self._known[key] = self._recall(key) or self._measure(personality, key)
        return self._known[key]

    def _measure(self, personality: Personality, key: str) -> tuple[ProbeResult, ...]:
        with self.taking(personality) as (model, tokenizer), threads_for(model):
            results = tuple(measure(model, tokenizer, self.probes, on_probe=self._on_probe))
        self.measured += 1
        record = Evaluation(
            id=key,
            version="",
            personality=personality.id,
            environment=self._environment,
            suite=self._suite,
            seed=_SEED,
            results=results,
            time=now(),
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._folder / f"{key}.json", record.to_bytes())
        return results

    def _recall(self, key: str) -> tuple[ProbeResult, ...] | None:
        """What an evaluation of a version, or another search, has measured already."""
        known = self.repository.evaluations_of_run(key)
        if known:
            return known[-1].results
        path = self._folder / f"{key}.json"
        try:
            return Evaluation.read(path).results if path.is_file() else None
        except PersonaError:
            return None  # a cache: what cannot be read is measured again
