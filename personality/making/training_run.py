"""`train`: a behavior's examples become a vector of this base: diagnosed before, guarded during, judged after."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from personality import processes
from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.environment import tool_versions
from personality.evaluation.measure import measure
from personality.evaluation.suite import Probe, read_suite
from personality.live.live_report import LiveReport
from personality.live.publisher import Publisher
from personality.live.publishing import LiveOptions, check_live, make_publisher
from personality.making.arm import Arm, Bench, fresh_model, make_avoidance, save_weights, subtract, swapped
from personality.making.checkups import Checkups
from personality.making.dose import dose_of
from personality.making.health import measure_health
from personality.making.ledger import check_fresh
from personality.making.prevention import make_prevention
from personality.making.run_folder import RunFolder, run_folder
from personality.making.run_record import Measured, data_used, measures_of, training_record
from personality.making.training_data import TrainingData, read_data
from personality.making.training_job import TrainingJob
from personality.making.vector_records import complete_lineage, record_vector
from personality.making.verdict import compare, judge
from personality.manifests.errors import PersonaError, UsageError
from personality.manifests.manifest import Making, Manifest
from personality.manifests.names import check_behavior_name
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.manifests.training_record import TrainingRecord
from personality.model import load_composed, load_tokenizer, threads_for
from personality.preflight.findings import Preflight
from personality.preflight.preflight import run_preflight
from personality.vectors.adapter import store_adapter
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.difference import store_difference
from personality.vectors.task_vector import open_task_vector
from personality.vectors.training.examples import digest_examples
from personality.vectors.training.run import InterruptedRunError, TrainingReport
from personality.vectors.training.run_log import RunLog
from personality.vectors.training.step_report import StepReport
from personality.vectors.training.trainable import chosen_parameters
from personality.vectors.training.watch import DivergedError


class NoGoError(PersonaError):
    """The diagnosis before training says that it will not give what is wanted."""

    kind = "preflight"
    exit_code = 3


@dataclass(frozen=True)
class Trained:
    """A finished training run.

    Attributes:
        manifest: of the vector.
        new: False when the same vector was there already (the same data, settings and seed).
        report: of the run (toward the behavior, for a contrastive vector); None when nothing had to be run.
        preflight: the diagnosis; None when it was left out.
        live: how it was served meanwhile; None when it was not.
    """

    manifest: Manifest
    new: bool
    report: TrainingReport | None
    preflight: Preflight | None
    live: LiveReport | None = None


def train_behavior(
    repository: Repository,
    job: TrainingJob,
    *,
    resume: RunFolder | None = None,
    tensorboard: Path | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    live: LiveOptions | None = None,
) -> Trained:
    """Train a behavior on the repository's base and store what changed as a vector.

    The repository's lock is held only while the result is stored, the run's own all the time. An interruption before
    that leaves the repository as it was, and a run that an equal job goes on with.

    Args:
        repository: where.
        job: what to do.
        resume: the unfinished run that this must be; None for whichever it is.
        tensorboard: folder for TensorBoard's event files.
        on_stage: told what is being done.
        on_step: told of each training step.
        live: publish snapshots of the run to a server while it goes on (of the arm toward the behavior alone).

    Raises:
        DataError: for data that cannot be used, naming file and line.
        NoGoError: when the diagnosis advises against it and `job.force` is false.
        DivergedError: when the run collapses before there is a good state; nothing is stored.
        InterruptedRunError: when somebody stopped it; an equal job goes on.
        PersonaError: when data, base or libraries are no longer those of `resume`; when another command works on it.
        ServerError: when the server for `live` cannot be reached at the beginning; later that is only noted.
    """
    check_behavior_name(job.behavior)
    told = on_stage or (lambda stage: None)
    processes.join()
    data = read_data(repository, job)
    check_job(job)
    folder = _folder(repository, job, data)
    if resume is not None and resume.id != folder.id:
        raise PersonaError(
            f"the run {resume.id} of `{job.behavior}` cannot be gone on with: its data, the base or the installed "
            "libraries have changed since",
            f"put them back as they were, or start anew: `persona train {job.behavior} --data {job.data} …`",
        )
    with folder.running() if processes.rank() == 0 else nullcontext():
        known = next((item for item in repository.manifests() if _run_of(item) == folder.id), None)
        if known is not None:
            if folder.unfinished:  # killed between storing and clearing away
                folder.finish(known.id)
            if job.promotes is not None and processes.rank() == 0:
                with repository.writing():  # a promotion is the same training, with one more origin
                    known = complete_lineage(repository, Manifest.read(repository.manifest_path(known.id)), job.lineage)
            return Trained(known, False, None, None)
        check_fresh(repository, job.behavior, data.behavior, allow=job.allow_repeats)
        publisher = None
        if live is not None and processes.rank() == 0:
            publisher = make_publisher(repository, job.behavior, folder, live, *check_live(repository, live))
            on_step = publisher.beside(on_step)
        try:
            return _train(repository, job, data, folder, tensorboard, told, on_step, publisher)
        finally:
            if publisher is not None:  # an interrupted run takes its server back too
                publisher.finish()


def _train(
    repository: Repository,
    job: TrainingJob,
    data: TrainingData,
    folder: RunFolder,
    tensorboard: Path | None,
    told: Callable[[str], None],
    on_step: Callable[[StepReport], None] | None,
    publisher: Publisher | None,
) -> Trained:
    """Diagnose, train, measure and store; the run's lock is held."""
    prevention = make_prevention(repository, job)
    told("loading the base")
    # By way of the composer, so that what is trained is what is composed, whatever else lies in the folder.
    composer = composer_of(repository, Personality(base=repository.config().base))
    tokenizer = load_tokenizer(composer.base.folder)
    base = load_composed(composer)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    chosen_parameters(base, job.settings)  # a mistyped group or layer is told before anything takes time
    probes = _probes(repository, job)
    with threads_for(base):
        diagnosis = _diagnose(base, tokenizer, data, job, probes, told)
        told("measuring the base")
        before = Measured(measure(base, tokenizer, probes), measure_health(base, tokenizer, data.held_out))
        checkups = _checkups(base, tokenizer, data, job)
    del base
    told("training")
    main = processes.rank() == 0
    log = RunLog(folder.log, tensorboard) if main else None
    going_on = _begin(folder, job)
    bench = Bench(composer, tokenizer, job.settings, data.general, checkups, log, on_step, going_on, prevention)
    try:
        arms = _train_arms(repository, bench, job, data, folder.path, told, publisher)
    except DivergedError:
        if main:
            folder.discard()
        raise
    except InterruptedRunError as error:
        error.hint = f"go on where it stopped: `persona train {job.behavior} --resume`"
        raise
    except Exception:
        if main and not folder.has_checkpoints:  # there is nothing to go on with
            folder.discard()
        raise
    finally:
        if log is not None:
            log.close()
    served = publisher.finish() if publisher is not None else None
    told("measuring the result")
    result = arms["toward"]
    after = {name: _measure_arm(arm, tokenizer, probes, data, checkups) for name, arm in arms.items()}
    if not main:
        processes.wait_for_all()
        return Trained(Manifest.read(repository.manifest_path(folder.vector)), True, result.report, diagnosis)
    effects = compare(
        job.behavior, probes, before.probes, after["toward"].probes, before.health, after["toward"].health
    )
    sign = next((arm.report.sign for name, arm in arms.items() if name != "placebo" and arm.report.sign), None)
    judgment = judge(effects, dose_of(result.report.settings, result.report.sides, sign, parameters))
    record = training_record(job, folder, diagnosis, before, arms, after, judgment)
    told("storing the vector")
    seconds = sum(each.report.seconds for each in arms.values())
    manifest, new = _store(
        repository, composer, job, data, result, seconds, record, folder.path, before, after["toward"]
    )
    folder.finish(manifest.id)
    processes.wait_for_all()
    return Trained(manifest, new, result.report, diagnosis, served)


def _probes(repository: Repository, job: TrainingJob) -> list[Probe]:
    """The behavior's own probes and the general suite, where there are any."""
    if job.probe_rows == 0:
        return []
    known = [job.behavior] if job.behavior in repository.behaviors() else []
    return read_suite(repository, known, job.probe_rows)


def _diagnose(
    base: Any, tokenizer: Any, data: TrainingData, job: TrainingJob, probes: list[Probe], told: Callable[[str], None]
) -> Preflight | None:
    if not job.preflight:
        return None
    told("diagnosing data and base")
    general = [*data.general, *data.held_out]
    found = run_preflight(base, tokenizer, data.behavior, general, job.settings, probes=probes, seed=job.settings.seed)
    if found.verdict == "no-go" and not job.force:
        reasons = "; ".join(finding.text for finding in found.of_level("no-go"))
        advice = "; ".join(finding.advice for finding in found.of_level("no-go") if finding.advice)
        raise NoGoError(
            f"the preflight says no-go: {reasons}",
            f"{advice}. All of it: `persona preflight {job.behavior} --data {job.data}`; train all the same: `--force`",
        )
    return found


def _checkups(base: Any, tokenizer: Any, data: TrainingData, job: TrainingJob) -> Checkups | None:
    """What the guard compares the model with; None without any general text."""
    if not data.unseen or not job.settings.guard:
        return None
    prompts = [*data.behavior[:4], *data.unseen[:4]]
    return Checkups(base, tokenizer, data.unseen, prompts, max_length=job.settings.max_length)


def _folder(repository: Repository, job: TrainingJob, data: TrainingData) -> RunFolder:
    behavior, general = digest_examples(data.behavior), digest_examples([*data.general, *data.held_out])
    return run_folder(repository, job.key(repository.config().base.fingerprint, behavior, general, tool_versions()))


def _run_of(manifest: Manifest) -> str | None:
    """Id of the run that made a vector."""
    return manifest.making.training.run if manifest.making.training is not None else None


def _begin(folder: RunFolder, job: TrainingJob) -> bool:
    """Make the run's folder, once for all processes; True when there is something in it to go on with."""
    resume = folder.unfinished
    processes.wait_for_all()
    if processes.rank() == 0:
        folder.begin(job)
    processes.wait_for_all()
    return resume


def _train_arms(
    repository: Repository,
    bench: Bench,
    job: TrainingJob,
    data: TrainingData,
    folder: Path,
    told: Callable[[str], None],
    publisher: Publisher | None,
) -> dict[str, Arm]:
    """Train what the job asks for: `toward` always; `away`, or a `placebo` for comparison."""
    make, placebo = None, None
    if job.avoid is not None:
        vector = open_task_vector(repository, job.avoid.vector, job.avoid.label, base=bench.composer.base)
        make = partial(make_avoidance, vector, bench.composer, job.avoid)
        placebo = partial(make, placebo_seed=job.settings.seed)
    snapshots = publisher.snapshots if publisher is not None else None
    arms = {"toward": bench.train(data.behavior, folder / "toward", make, snapshots)}
    if publisher is not None:
        told("taking the server back")
        publisher.finish(arms["toward"].report.sign)
    if job.contrastive:
        told("training away from the behavior")
        arms["away"] = bench.train(swapped(data.behavior), folder / "away", make)
        start = None if job.settings.lora_rank is not None else fresh_model(bench.composer, job.settings)
        subtract(arms["toward"].model, arms["away"].model, start)
    elif job.avoid is not None and job.avoid.placebo:
        told("training the placebo")
        with suppress(DivergedError):  # a comparison that fails must not cost the run; the log has it
            arms["placebo"] = bench.train(data.behavior, folder / "placebo", placebo)
    return arms


def _measure_arm(
    arm: Arm, tokenizer: Any, probes: list[Probe], data: TrainingData, checkups: Checkups | None
) -> Measured:
    model = arm.model.eval()
    with threads_for(model):
        kl = checkups.measure(model, arm.report.steps).kl if checkups is not None else None
        return Measured(measure(model, tokenizer, probes), measure_health(model, tokenizer, data.held_out, kl))


def _store(
    repository: Repository,
    composer: Composer,
    job: TrainingJob,
    data: TrainingData,
    arm: Arm,
    seconds: float,
    record: TrainingRecord,
    folder: Path,
    before: Measured,
    after: Measured,
) -> tuple[Manifest, bool]:
    """Store the trained weights' difference, or the adapter, and its manifest."""
    tuned = folder / "tuned"
    # save_pretrained turns the model's own layout (packed experts, say) back into the checkpoint's keys.
    save_weights(arm.model, tuned)
    with repository.writing():
        if job.settings.lora_rank is not None:
            stored = store_adapter(repository, composer.base, tuned)
        else:
            stored = store_difference(repository, composer.base, Checkpoint(tuned), trained_here=True)
        # Counted here, where nothing else writes: another run may have used the same examples meanwhile.
        repeats = check_fresh(repository, job.behavior, data.behavior, allow=True)
        known = repository.behaviors().get(job.behavior)
        manifest, new = record_vector(
            repository,
            job.behavior,
            repository.config().base,
            stored,
            Making(
                how="train",
                settings=arm.report.settings.model_dump(mode="json"),
                data=data_used(job, data, arm.report),
                tools=tool_versions(),
                seconds=round(seconds, 3),
                training=record.model_copy(update={"repeated": repeats}),
            ),
            command=f"train {job.behavior} --data {job.data.name}",
            description=known.description if known else "",
            measures=measures_of(before.probes, after.probes),
            lineage=job.lineage,
        )
        return complete_lineage(repository, manifest, job.lineage), new


def check_job(job: TrainingJob) -> None:
    """Refuse a job that would train on one behavior alone without saying so, or contradicts itself.

    Raises:
        UsageError: no general data, or the behavior's own data in its place; a direction to avoid with weights in which
            small corrections are rounded away; a direction to prevent, and several processes.
    """
    if job.avoid is not None and job.settings.weights != "float32" and job.settings.lora_rank is None:
        raise UsageError(
            f"--avoid with --weights {job.settings.weights}: small corrections would be rounded away",
            "leave out `--weights`: float32 weights keep them",
        )
    if job.prevent is not None and processes.world() > 1:
        raise UsageError(
            f"--prevent with {processes.world()} processes: directions act in one process only",
            "train with one process: leave out `accelerate launch`",
        )
    if job.general is None and job.settings.general_ratio > 0:
        raise UsageError(
            "no general data: training on one behavior alone makes a model forget the rest",
            "give `--general FILE`, or say that you want it so with `--general-ratio 0`",
        )
    if job.general is not None and job.general.resolve() == job.data.resolve():
        raise UsageError(
            f"{job.data} is given both as the behavior's data and as general data", "general data is other data"
        )
