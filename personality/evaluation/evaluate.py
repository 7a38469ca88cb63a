"""Evaluating a version: measured in memory, kept with the version, never measured twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from personality.composition.opening import composer_of
from personality.environment import build_environment, tool_versions
from personality.evaluation.intervals import paired_difference, paired_share_difference
from personality.evaluation.measure import measure
from personality.evaluation.suite import read_suite, suite_digest
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import DataError
from personality.manifests.evaluation import Evaluation, Figure
from personality.manifests.repository import Repository
from personality.manifests.transaction import now
from personality.manifests.version import Version
from personality.model import device, load_composed, load_tokenizer, threads_for

SEED = 0


def evaluate(
    repository: Repository,
    version: Version,
    *,
    behaviors: list[str] | None = None,
    rows: int | None = None,
    again: bool = False,
    on_probe: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Measure a version with the repository's probes, or return what an equal run measured before.

    Args:
        repository: where.
        version: what to measure; it is composed in memory.
        behaviors: whose probes; None for all. General ability is always measured.
        rows: at most so many rows of each probe.
        again: measure even when the same was measured before.
        on_probe: see `measure`.

    Raises:
        DataError: when the repository has no probes.
    """
    probes = read_suite(repository, behaviors, rows)
    if not probes:
        raise DataError(
            "this repository has no probes, so there is nothing to measure",
            "add [[probes]] to behaviors/NAME.toml (docs/on-disk.md shows how), or try `persona playground DIR`",
        )
    suite = suite_digest(probes)
    environment = {**build_environment(device()), "transformers": tool_versions()["transformers"]}
    key = Evaluation.key(version.personality.id, environment, suite, SEED)
    if not again and (known := repository.evaluations_of_run(key)):
        return known[-1]
    composer = composer_of(repository, version.personality)
    model, tokenizer = load_composed(composer), load_tokenizer(composer.base.folder)
    with threads_for(model):
        results = measure(model, tokenizer, probes, on_probe=on_probe)
    evaluation = Evaluation(
        id=key,
        version=version.id,
        personality=version.personality.id,
        environment=environment,
        suite=suite,
        seed=SEED,
        results=tuple(results),
        time=now(),
    )
    write_bytes(repository.new_evaluation_path(version.id, key), evaluation.to_bytes())
    return evaluation


@dataclass(frozen=True)
class Effect:
    """How one probe changed from one version to another.

    Attributes:
        probe: its name.
        before, after: share of passing replies.
        change: paired difference of that share.
        probability_before, probability_after, probability_change: the same for the opening's probability.
    """

    probe: str
    before: Figure
    after: Figure
    change: Figure
    probability_before: Figure | None
    probability_after: Figure | None
    probability_change: Figure | None

    @property
    def shown(self) -> bool:
        """Whether a difference was shown in either figure."""
        changes = [self.change, *([self.probability_change] if self.probability_change else [])]
        return any(change.shows_change for change in changes)


def compare_effects(before: Evaluation, after: Evaluation) -> list[Effect]:
    """Probe by probe, paired by row; both evaluations must have used the same suite.

    Raises:
        DataError: when they did not.
    """
    if before.suite != after.suite:
        raise DataError(
            "the two evaluations used different probes", "evaluate both again: `persona eval VERSION --again`"
        )
    effects = []
    for old in before.results:
        new = after.result(old.probe)
        assert new is not None  # the same suite has the same probes
        probability = None
        if old.probabilities and new.probabilities:
            probability = paired_difference(old.probabilities, new.probabilities)
        effects.append(
            Effect(
                probe=old.probe,
                before=old.passed,
                after=new.passed,
                change=paired_share_difference(old.outcomes, new.outcomes),
                probability_before=old.probability,
                probability_after=new.probability,
                probability_change=probability,
            )
        )
    return effects
