"""Promotion: a behavior that a direction gives at run time is trained into the weights, and takes its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personality import processes
from personality.composition.opening import composer_of
from personality.evaluation.evaluate import Effect, compare_effects, evaluate
from personality.evaluation.suite import read_suite
from personality.making.shift import Shift, example_readings, measure_shift, probe_readings
from personality.making.training_job import TrainingJob
from personality.making.training_run import Trained, train_behavior
from personality.manifests.errors import NotFoundError, PersonaError, UsageError
from personality.manifests.manifest import Manifest
from personality.manifests.names import VectorLabel, near
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.model import load_composed, load_tokenizer, threads_for
from personality.vectors.steering.injection import injections
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.training.examples import read_examples
from personality.vectors.training.run import InterruptedRunError
from personality.vectors.training.step_report import StepReport
from personality.versions.changes import Recorded, add
from personality.versions.history import History
from personality.versions.recipe import compare_recipes, manifest_of, use_vector, working_personality

_ROWS = 200
"""Training examples that the shift is read on, at most, where a behavior has no probes."""


@dataclass(frozen=True)
class Promoted:
    """What a promotion did.

    Attributes:
        steering: manifest of the direction.
        use: how it was used.
        before: the version in which it acted, the newest one before `recorded`.
        trained: the training run; its manifest is that of the task vector.
        recorded: the version in which the task vector stands in for the direction; None when the guard stopped the
            training, so that what there is of it should be looked at first.
        shift: of activations, by the trained vector at `scale` beside that by the direction as it was used.
        effects: probe by probe, under steering and after training; empty without probes or without a version.
        scale: of the task vector.
    """

    steering: Manifest
    use: Use
    before: Version
    trained: Trained
    recorded: Recorded | None
    shift: Shift
    effects: tuple[Effect, ...]
    scale: float

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "steering": self.steering.label,
            "use": self.use.as_json(),
            "vector": self.trained.manifest.as_json(),
            "new": self.trained.new,
            "scale": self.scale,
            "before": self.before.id,
            "version": self.recorded.version.id if self.recorded is not None else None,
            "label": self.recorded.label if self.recorded is not None else None,
            "shift": self.shift.as_json(),
            "effects": [
                {
                    "probe": item.probe,
                    "steered": item.before.as_json(),
                    "trained": item.after.as_json(),
                    "change": item.change.as_json(),
                    "probability_steered": item.probability_before.as_json() if item.probability_before else None,
                    "probability_trained": item.probability_after.as_json() if item.probability_after else None,
                    "probability_change": item.probability_change.as_json() if item.probability_change else None,
                }
                for item in self.effects
            ],
        }


def promote(
    repository: Repository,
    job: TrainingJob,
    *,
    scale: float = 1.0,
    message: str = "",
    tensorboard: Path | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Promoted:
    """Train what a steering vector does into the weights, and record a version with the task vector in its place.

    The training is that of `train_behavior`: on the base alone, whatever else is in use. Interrupted, the same call
    goes on with it.

    Args:
        repository: where; its files must be as the newest version says.
        job: the training; `promotes` is filled in here.
        scale: of the task vector in the new version.
        message: of the version, behind the names of both vectors.
        tensorboard, on_stage, on_step: as for `train_behavior`.

    Raises:
        NotFoundError: the behavior is not in use.
        UsageError: a task vector is in use already; a scale of 0; several processes.
        PersonaError: unsaved edits; the behavior's use was changed meanwhile, so that no version is recorded.
        DataError, NoGoError, DivergedError, InterruptedRunError: as `train_behavior`; no version is recorded.
    """
    told = on_stage or (lambda stage: None)
    if processes.world() > 1:
        raise UsageError(
            f"a promotion with {processes.world()} processes: only its training can be shared by several",
            f"train first (`accelerate launch … persona train {job.behavior} …`), then `persona add` the vector",
        )
    version, use, steering = steering_in_use(repository, job.behavior)
    if scale == 0:
        raise UsageError("at scale 0 the trained vector would do nothing", "give a scale such as 1")
    vector = open_steering(repository, use.vector, use.label)
    injections(vector, use.scale or 1.0, use.layers, use.label)  # what cannot act is told before anything takes time
    try:
        trained = train_behavior(
            repository,
            job.model_copy(update={"promotes": use.vector}),
            tensorboard=tensorboard,
            on_stage=on_stage,
            on_step=on_step,
        )
    except InterruptedRunError as error:
        # `train --resume` would end with a vector and no version.
        error.hint = f"go on where it stopped: give the same `persona promote {job.behavior} …` again"
        raise
    label = VectorLabel(job.behavior, trained.manifest.number, trained.manifest.id)
    told("reading the shift of activations")
    shift = _shift(repository, job, use, use_vector(repository, label, scale))
    training = trained.manifest.making.training
    if training is not None and training.stopped is not None:
        return Promoted(steering, use, version, trained, None, shift, (), scale)
    told("recording")
    version = _unchanged(repository, use, label)
    text = f"promote {use.label} → {trained.manifest.label}" + (f": {message}" if message else "")
    recorded = add(repository, label, scale, message=text)
    effects: tuple[Effect, ...] = ()
    known = [job.behavior] if job.behavior in repository.behaviors() else []
    if job.probe_rows != 0 and read_suite(repository, known, job.probe_rows):
        measured = []
        for item in (version, recorded.version):
            told(f"measuring {History(repository).label(item)}")
            measured.append(evaluate(repository, item, behaviors=known, rows=job.probe_rows))
        effects = tuple(compare_effects(measured[0], measured[1]))
    return Promoted(steering, use, version, trained, recorded, shift, effects, scale)


def steering_in_use(repository: Repository, behavior: str) -> tuple[Version, Use, Manifest]:
    """The newest version, and a behavior's steering vector in it.

    Raises:
        NotFoundError: the behavior is not in use.
        UsageError: what is in use is a task vector.
        PersonaError: unsaved edits, over which no version may be recorded.
    """
    history = History(repository)
    working = working_personality(repository)
    head = history.head(working)
    if compare_recipes(head.personality, working):
        raise PersonaError(
            f"the files differ from {history.label(head)}",
            f"`persona save -m …` records that as a version, `persona restore {history.label(head)}` drops it",
        )
    use = head.personality.use_of(behavior)
    if use is None:
        names = [item.behavior for item in head.personality.uses]
        raise NotFoundError(
            f"`{behavior}` is not in use in {history.label(head)}: there is nothing to promote",
            near(behavior, names) or f"try its direction first: `persona add {behavior}`",
        )
    manifest = manifest_of(repository, use)
    if manifest.kind != "steering":
        versions = _promotion(history, use, manifest)
        raise UsageError(
            f"`{use.label}` is a task vector: it is in the weights already",
            f"see what was predicted beside what came of it: `persona diff {' '.join(versions)} --effect`"
            if versions
            else f"train another: `persona train {behavior} …`",
        )
    return head, use, manifest


def _promotion(history: History, use: Use, manifest: Manifest) -> tuple[str, str] | None:
    """Labels of the versions before and after a vector took a direction's place; None when it was not promoted."""
    for version in history.versions.values():
        after = version.personality.use_of(use.behavior)
        if after is None or after.vector != use.vector:
            continue
        for parent in version.parents:
            before = history.versions[parent].personality.use_of(use.behavior)
            if before is not None and before.vector in manifest.lineage:
                return history.label(history.versions[parent]), history.label(version)
    return None


def _unchanged(repository: Repository, use: Use, trained: VectorLabel) -> Version:
    """The newest version, once the training is over.

    Raises:
        PersonaError: the behavior is no longer used as it was before.
    """
    name = f"{trained.behavior}@{trained.number}"
    hint = f"`{name}` is kept; to put it into use all the same: `persona add {name}`"
    try:
        version, found, _ = steering_in_use(repository, use.behavior)
    except PersonaError as error:
        raise PersonaError(f"trained `{name}`, and recorded no version: {error.message}", hint) from error
    if found != use:
        raise PersonaError(f"trained `{name}`, and recorded no version: meanwhile {use} has become {found}", hint)
    return version


def _shift(repository: Repository, job: TrainingJob, steering: Use, task: Use) -> Shift:
    """On the probes' own replies, or on the training data where there are none."""
    plain = Personality(base=repository.config().base)
    composer = composer_of(repository, plain)
    tokenizer = load_tokenizer(composer.base.folder)
    vector = open_steering(repository, steering.vector, steering.label)
    known = repository.behaviors().get(job.behavior)
    own = read_suite(repository, [job.behavior], job.probe_rows or None) if known is not None else []
    # Not those of the other side, or of general abilities, where the behavior should not show.
    probes = [probe for probe in own if probe.name.startswith(f"{job.behavior}.") and probe.side in (None, "accept")]
    readings = probe_readings(tokenizer, probes, vector.positions)
    held_out = bool(readings)
    if not readings:
        examples = [item for item in read_examples(job.data, need_rejected=False) if item.side != "push_back"]
        readings = example_readings(tokenizer, examples[:_ROWS], vector.positions)
    base, trained = load_composed(composer), load_composed(composer_of(repository, plain.with_use(task)))
    with threads_for(base):
        return measure_shift(
            base, trained, readings, vector, scale=steering.scale, layers=steering.layers, held_out=held_out
        )
