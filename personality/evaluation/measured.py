"""What was measured before, probe by probe: an added probe alone is new, and an interruption loses no finished one."""

from __future__ import annotations

from collections.abc import Sequence

from personality.environment import build_environment, tool_versions
from personality.evaluation.probe import Probe
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import PersonaError
from personality.manifests.evaluation import Measurement, ProbeResult
from personality.manifests.repository import Repository
from personality.model import device


class Measured:
    """Results by personality and probe, in this environment: of evaluations, and of what no evaluation has.

    The latter lie in `.persona/measured`: of searches, which measure many recipes that never become versions, and of
    evaluations that were interrupted.

    Args:
        repository: where.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._folder = repository.local / "measured"
        self._of_versions: dict[tuple[str, str], ProbeResult] | None = None
        self.environment = {**build_environment(device()), "transformers": tool_versions()["transformers"]}

    def recall(self, personality: str, probes: Sequence[Probe]) -> dict[str, ProbeResult]:
        """Results that are known, by the probe's name.

        Args:
            personality: its id.
            probes: any number.
        """
        found = {probe.name: self._recall(personality, probe.digest) for probe in probes}
        return {name: result for name, result in found.items() if result is not None}

    def keep(self, personality: str, probe: Probe, result: ProbeResult) -> None:
        """Write a result down as soon as it is there."""
        key = Measurement.key(personality, self.environment, probe.digest)
        write_bytes(self._folder / key[:2] / f"{key}.json", Measurement(id=key, result=result).to_bytes())

    def _recall(self, personality: str, probe: str) -> ProbeResult | None:
        key = Measurement.key(personality, self.environment, probe)
        path = self._folder / key[:2] / f"{key}.json"
        try:
            found = Measurement.read(path) if path.is_file() else None
        except PersonaError:
            found = None  # a cache: what cannot be read is measured again
        if found is not None and found.id == key and found.result.digest == probe:
            return found.result
        return self._evaluated().get((personality, probe))

    def _evaluated(self) -> dict[tuple[str, str], ProbeResult]:
        """By personality and probe: what evaluations in this environment hold, the newest last. Read once."""
        if self._of_versions is None:
            self._of_versions = {
                (evaluation.personality, result.digest): result
                for version in self._repository.versions()
                for evaluation in self._repository.evaluations(version)
                if evaluation.environment == self.environment
                for result in evaluation.results
                if result.digest
            }
        return self._of_versions
