"""Evaluating a version: measured in memory, kept with the version, never measured twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from personality.evaluation.health import health_digest, health_rows, measure_health
from personality.evaluation.intervals import paired_difference, paired_share_difference
from personality.evaluation.suite import Probe, read_suite, suite_digest
from personality.evaluation.workbench import Workbench
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import DataError
from personality.manifests.evaluation import Evaluation, Figure, HealthResult, ProbeResult
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.manifests.transaction import now
from personality.manifests.version import Version

SEED = 0


def evaluate(
    repository: Repository,
    version: Version,
    *,
    behaviors: list[str] | None = None,
    rows: int | None = None,
    again: bool = False,
    on_probe: Callable[[int, int, str], None] | None = None,
    probes: Sequence[Probe] | None = None,
    health: bool = False,
    bench: Workbench | None = None,
) -> Evaluation:
    """Measure a version with the repository's probes, or return what an equal run measured before.

    Probes that were measured on this personality before, alone or in another suite, are not measured again, and what
    an interrupted run has finished is kept.

    Args:
        repository: where.
        version: what to measure; it is composed in memory.
        behaviors: whose probes; None for all. General ability is always measured.
        rows: at most so many rows of each probe.
        again: measure even when the same was measured before.
        on_probe: see `measure`.
        probes: these, in place of `behaviors` and `rows`.
        health: also measure general text, coherence and the distance from the base, where there is general text.
        bench: with these probes, to measure several versions in one model.

    Raises:
        DataError: when the repository has no probes.
        PersonaError: when the version has fallen apart, or a judge gives no verdicts.
    """
    probes = read_suite(repository, behaviors, rows) if probes is None else probes
    bench = bench or Workbench(repository, probes, on_probe=on_probe)
    suite = suite_digest(probes)
    key = Evaluation.key(version.personality.id, bench.store.environment, suite, SEED)
    text, prompts = health_rows(repository, probes) if health else ([], [])
    known = repository.evaluations_of_run(key)
    well = _known_health(known, health_digest(text, prompts)) if text else None
    if known and not again and (well or not text):
        return next(item for item in reversed(known) if not text or item.health == well)
    results = bench.measure(version.personality, again=again)
    if text and (again or well is None):
        if on_probe:
            on_probe(len(probes), len(probes) + 1, "general text")
        well = measure_health(bench, base_alone(version.personality), version.personality, text, prompts)
    evaluation = Evaluation(
        id=key,
        version=version.id,
        personality=version.personality.id,
        environment=bench.store.environment,
        suite=suite,
        seed=SEED,
        results=results,
        time=now(),
        health=well,
    )
    write_bytes(repository.new_evaluation_path(version.id, key), evaluation.to_bytes())
    return evaluation


def base_alone(personality: Personality) -> Personality:
    """The base of a personality, without its uses."""
    return personality.model_copy(update={"uses": ()})


def _known_health(known: Sequence[Evaluation], digest: str) -> HealthResult | None:
    found = [item.health for item in known if item.health is not None and item.health.digest == digest]
    return found[-1] if found else None


@dataclass(frozen=True)
class Effect:
    """How one probe changed from one version to another.

    Attributes:
        probe: its name.
        before, after: share of passing replies.
        change: paired difference of that share.
        probability_before, probability_after, probability_change: the same for the opening's probability.
        margin_before …: the same for the margin, sampled replies, a judge's grade and the bypass; see `ProbeResult`.
    """

    probe: str
    before: Figure
    after: Figure
    change: Figure
    probability_before: Figure | None
    probability_after: Figure | None
    probability_change: Figure | None
    margin_before: Figure | None = None
    margin_after: Figure | None = None
    margin_change: Figure | None = None
    sampled_before: Figure | None = None
    sampled_after: Figure | None = None
    sampled_change: Figure | None = None
    grade_before: Figure | None = None
    grade_after: Figure | None = None
    grade_change: Figure | None = None
    bypass_before: Figure | None = None
    bypass_after: Figure | None = None
    bypass_change: Figure | None = None

    @property
    def others(self) -> dict[str, tuple[Figure, Figure, Figure]]:
        """Before, after and change of what is measured beside replies and openings, where both sides have it."""
        found = {}
        for name in _OTHERS:
            before, after, change = (getattr(self, f"{name}_{when}") for when in ("before", "after", "change"))
            if before and after and change:
                found[name] = (before, after, change)
        return found

    @property
    def shown(self) -> bool:
        """Whether a difference was shown in any figure."""
        changes = [self.change, *([self.probability_change] if self.probability_change else [])]
        changes += [change for _, _, change in self.others.values()]
        return any(change.shows_change for change in changes)


def suite_changes(before: Evaluation, after: Evaluation) -> list[str]:
    """How the suites of two evaluations differ, in words, probe by probe; empty when they are the same."""
    if before.suite == after.suite:
        return []
    old, new = ({result.probe: result for result in item.results} for item in (before, after))
    words = [f"`{name}` is new" for name in new if name not in old]
    words += [f"`{name}` is gone" for name in old if name not in new]
    pairs = [(name, old[name].digest, new[name].digest) for name in old if name in new]
    words += [f"`{name}` was changed" for name, first, second in pairs if first and second and first != second]
    unknown = [name for name, first, second in pairs if not (first and second)]
    if unknown and not words:
        words.append("one was made before probes had digests of their own, so which changed is not known")
    return words


def compare_effects(before: Evaluation, after: Evaluation) -> list[Effect]:
    """Probe by probe, paired by row; both evaluations must have used the same suite.

    Raises:
        DataError: when they did not, naming the probes.
    """
    if words := suite_changes(before, after):
        raise DataError(
            f"the two evaluations used different probes: {'; '.join(words)}",
            "evaluate both with the probes of now: `persona eval VERSION`",
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
                **_others(old, new),
            )
        )
    return effects


def _others(old: ProbeResult, new: ProbeResult) -> dict[str, Figure | None]:
    found: dict[str, Figure | None] = {}
    for name, rows in _OTHERS.items():
        first, second = getattr(old, rows), getattr(new, rows)
        found |= {f"{name}_before": getattr(old, name), f"{name}_after": getattr(new, name)}
        if first and second:
            differ = paired_share_difference if name == "bypass" else paired_difference
            found[f"{name}_change"] = differ(first, second)
    return found


_OTHERS = {"margin": "margins", "sampled": "shares", "grade": "grades", "bypass": "bypasses"}
"""Figures of a probe beside replies and openings, and the fields that hold them row by row."""
