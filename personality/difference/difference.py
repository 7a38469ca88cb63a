"""Everything in which two versions differ, gathered once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from personality.composition.opening import composer_of
from personality.composition.steering_diff import SteeringDiff, steering_diff
from personality.composition.weight_diff import WeightDiff, weight_changes
from personality.difference.manifest_curve import ManifestCurve, manifest_curves
from personality.difference.owners import parts_of
from personality.difference.transcripts import Transcript, transcripts
from personality.evaluation.evaluate import Effect, compare_effects, evaluate
from personality.evaluation.suite import read_suite
from personality.evaluation.workbench import Workbench
from personality.manifests.evaluation import Evaluation, Figure
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.versions.history import History
from personality.versions.recipe import RecipeChange, compare_recipes

OnStep = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Side:
    """One of the two versions: the record and the name by which it is called."""

    label: str
    version: Version


@dataclass(frozen=True)
class MeasuredChange:
    """What the change does.

    Attributes:
        evaluations: of both versions, with the same suite.
        effects: probe by probe.
        transcripts: the replies that changed most.
    """

    evaluations: tuple[Evaluation, Evaluation]
    effects: tuple[Effect, ...]
    transcripts: tuple[Transcript, ...]


@dataclass(frozen=True)
class Difference:
    """What changed from one version to another.

    Attributes:
        before, after: the versions.
        recipe: what has to change to get from one to the other; empty when they are the same.
        weights: by layer and module, and who owns the change.
        steering: by layer, positions, mode and condition.
        doses: of the vectors in use, where their manifests hold a curve.
        measured: None when the behavior was not measured.
    """

    before: Side
    after: Side
    recipe: tuple[RecipeChange, ...]
    weights: WeightDiff
    steering: tuple[SteeringDiff, ...]
    doses: tuple[ManifestCurve, ...]
    measured: MeasuredChange | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        found: dict[str, Any] = {
            "before": self.before.version.id,
            "after": self.after.version.id,
            "labels": [self.before.label, self.after.label],
            "recipe": [change.as_json() for change in self.recipe],
            "layers": [asdict(layer) for layer in self.weights.layers],
            "modules": [asdict(module) for module in self.weights.modules],
            "owners": [asdict(owner) for owner in self.weights.owners],
            "steering": [asdict(item) for item in self.steering],
            "doses": [asdict(curve) for curve in self.doses],
        }
        if self.measured is not None:
            first = self.measured.evaluations[0]
            found["measured"] = {
                "evaluations": [evaluation.id for evaluation in self.measured.evaluations],
                "suite": first.suite,
                "seed": first.seed,
                "environment": first.environment,
            }
            found["effects"] = [effect_json(effect) for effect in self.measured.effects]
            found["replies"] = [
                {**asdict(item), "prompt": [turn.as_json() for turn in item.prompt]}
                for item in self.measured.transcripts
            ]
        return found


def effect_json(effect: Effect) -> dict[str, Any]:
    """An effect as JSON data: every figure with its interval, and whether a difference was shown."""
    found: dict[str, Any] = {"probe": effect.probe, "shown": effect.shown}
    for item in fields(effect):
        value = getattr(effect, item.name)
        found[item.name] = value.as_json() if isinstance(value, Figure) else value
    return found


def differ(repository: Repository, before: Version, after: Version) -> Difference:
    """Compare two versions' recipes, weights and steering; what they do is `measure_difference`'s.

    Raises:
        IncompatibleError: when one of them is for another base.
        NotFoundError, CorruptError: when base or vectors are missing or damaged.
    """
    history = History(repository)
    old, new = before.personality, after.personality
    recipe = compare_recipes(old, new)
    weights, steering = WeightDiff((), (), ()), list[SteeringDiff]()
    if recipe:
        composers = [composer_of(repository, personality) for personality in (old, new)]
        parts = parts_of(old, new, lambda personality: composer_of(repository, personality))
        weights = weight_changes(composers[0], composers[1], parts)
        steering = steering_diff(composers[0].steering, composers[1].steering)
    return Difference(
        before=Side(history.label(before), before),
        after=Side(history.label(after), after),
        recipe=tuple(recipe),
        weights=weights,
        steering=tuple(steering),
        doses=tuple(manifest_curves(repository, old, new)),
    )


def measure_difference(
    repository: Repository,
    before: Version,
    after: Version,
    *,
    rows: int | None = None,
    replies: int = 0,
    on_step: OnStep | None = None,
) -> MeasuredChange:
    """Evaluate both versions, or recall what was measured before, and compare them row by row.

    Args:
        repository: where.
        before, after: what to measure.
        rows: at most so many rows of each probe.
        replies: how many of the replies that changed most to write again.
        on_step: called before each step with its number, the number of steps and what it is.

    Raises:
        DataError: when the repository has no probes.
    """
    probes = read_suite(repository, None, rows)
    bench = Workbench(repository, probes, on_probe=on_step)
    old, new = (evaluate(repository, version, probes=probes, bench=bench) for version in (before, after))
    found: list[Transcript] = []
    if replies and before.personality.id != after.personality.id:
        found = transcripts(bench, probes, (old, new), (before.personality, after.personality), replies)
    return MeasuredChange((old, new), tuple(compare_effects(old, new)), tuple(found))
