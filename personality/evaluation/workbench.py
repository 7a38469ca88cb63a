"""One model in memory that takes on one personality after another: for searches, which measure many and keep none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.environment import build_environment, tool_versions
from personality.evaluation.measure import measure
from personality.evaluation.suite import Probe, suite_digest
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import DataError, PersonaError
from personality.manifests.evaluation import Evaluation, ProbeResult
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.manifests.transaction import now
from personality.model import device, load_composed, load_model, load_tokenizer, threads_for
from personality.vectors.steering.hooks import steered

_SEED = 0


class Workbench:
    """Measures personalities of a repository with one suite; what was measured before is not measured again.

    Only the tensors that a personality changes are composed and put into the model, and taken out again behind it.
    Where the model's parameters are not the checkpoint's tensors (experts that a class stacks), it is loaded anew.

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
        self.repository = repository
        self.probes = list(probes)
        self.measured = 0
        """Personalities that were measured by this object, and not known before."""
        self._on_probe = on_probe
        self._suite = suite_digest(self.probes)
        self._environment = {**build_environment(device()), "transformers": tool_versions()["transformers"]}
        self._folder = repository.local / "measured"
        self._model: Any = None
        self._tokenizer: Any = None
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

    @contextlib.contextmanager
    def taking(self, personality: Personality) -> Iterator[tuple[Any, Any]]:
        """The model as that personality, weights and steering, inside the block; and its tokenizer.

        Raises:
            IncompatibleError, NotFoundError, CorruptError: when it cannot be composed.
        """
        composer = composer_of(self.repository, personality)
        if self._model is None:
            self._model = load_model(composer.base.folder)
            self._tokenizer = load_tokenizer(composer.base.folder)
        parameters = dict(self._model.named_parameters())
        if not _has_tensors(parameters, composer):
            yield load_composed(composer), self._tokenizer
            return
        try:
            for name in composer.touched:
                parameters[name].data.copy_(composer.tensor(name))
            with steered(self._model, composer.steering, rounding=composer.layer_dtype):
                yield self._model, self._tokenizer
        finally:
            for name in composer.touched:
                parameters[name].data.copy_(composer.base.tensor(name))

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


def _has_tensors(parameters: dict[str, Any], composer: Composer) -> bool:
    return all(
        name in parameters and tuple(parameters[name].shape) == composer.specs[name].shape for name in composer.touched
    )
