"""Train one behavior into a model: the whole run, phase by phase."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from personality.manifests.errors import DataError, PersonaError
from personality.vectors.meter import Survival
from personality.vectors.training.apollo import state_bytes
from personality.vectors.training.avoidance import Avoidance
from personality.vectors.training.batches import gather_batches, general_needed, plan_batches
from personality.vectors.training.checkpoints import load_trained, newest, newest_sound, step_of
from personality.vectors.training.examples import Example, count_sides, digest_examples
from personality.vectors.training.frozen_context import check_frozen_context
from personality.vectors.training.guard import Checkup, CollapseGuard, GuardLimits, Sign
from personality.vectors.training.presets import PRESETS, Objective, phases_of
from personality.vectors.training.run_log import RunLog
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.step_report import StepReport
from personality.vectors.training.tokens import Tokenizer, encode_examples, pad_id
from personality.vectors.training.trainable import trainable
from personality.vectors.training.trainer import BehaviorTrainer
from personality.vectors.training.watch import DivergedError, Snapshots, Watch


class InterruptedRunError(PersonaError):
    """Somebody stopped the run; what it had done is on the disk."""

    kind = "interrupt"
    exit_code = 130


@dataclass(frozen=True)
class TrainingReport:
    """What a run did.

    Attributes:
        settings: as used, learning rates filled in.
        steps: optimizer steps that count: all, or those before the state that was kept.
        seconds: from the first batch to the last step (loading and set-up not counted).
        tokens: through the model, prompts and rejected answers included.
        reports: of every step, those after the kept state included.
        sides: the behavior's examples by side: "accept", "push_back", "unlabeled".
        behavior_examples: used, each once.
        general_examples: used, each once.
        behavior_digest: SHA-256 of the behavior's data.
        general_digest: SHA-256 of all general data given.
        trained: names of the trained parameters.
        optimizer_bytes: memory of the optimizer's state at the end; 0 when all was read from a finished run.
        survival: what rounding left of the updates of weights kept in bfloat16, in the phase that lost most; None for
            float32 weights.
        sign: of collapse, when the guard stopped the run.
        guard: the guard's log.
    """

    settings: TrainSettings
    steps: int
    seconds: float
    tokens: int
    reports: tuple[StepReport, ...]
    sides: dict[str, int]
    behavior_examples: int
    general_examples: int
    behavior_digest: str
    general_digest: str
    trained: tuple[str, ...]
    optimizer_bytes: int
    survival: Survival | None
    sign: Sign | None
    guard: tuple[dict[str, Any], ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """The objective at each step, nats per token."""
        return tuple(report.loss for report in self.reports)

    @property
    def nlls(self) -> tuple[float, ...]:
        """The likelihood part at each step."""
        return tuple(report.nll for report in self.reports)

    @property
    def margins(self) -> tuple[float, ...]:
        """Mean log-odds ratio of chosen to rejected at each step that had pairs."""
        return tuple(report.margin for report in self.reports if report.margin is not None)


@dataclass(frozen=True)
class Callbacks:
    """What a caller wants to look at, or to have looked after, while a run goes on.

    Attributes:
        checkup: measures the model after a given number of steps, for the guard.
        avoid: given the model once its trained parameters are known, makes what keeps updates out of a direction.
        on_step: called after each step; what it raises ends the run.
        log: gets every step and event.
        snapshots: takes states elsewhere.
    """

    checkup: Callable[[nn.Module, int], Checkup] | None = None
    avoid: Callable[[nn.Module], Avoidance] | None = None
    on_step: Callable[[StepReport], None] | None = None
    log: RunLog | None = None
    snapshots: Snapshots | None = None


@dataclass(frozen=True)
class _Phase:
    objective: Objective
    behavior: Sequence[Example]
    general: Sequence[Example]
    rate: float


def fine_tune(
    model: nn.Module,
    tokenizer: Tokenizer,
    behavior: Sequence[Example],
    general: Sequence[Example],
    settings: TrainSettings,
    *,
    work_dir: Path,
    callbacks: Callbacks = Callbacks(),
    resume: bool = False,
) -> TrainingReport:
    """Train a model in place on one pass over a behavior's examples mixed with general ones.

    The same model, data and settings give the same bits on the same kind of CPU and number of threads, interrupted
    and resumed or not. The run seeds the global generators of Python, numpy and torch.

    Args:
        model: causal language model of transformers, weights in the dtype that `settings.weights` means, or what
            `attach_adapters` made of one. It comes back in evaluation mode, without gradients, on the device on which
            it was trained; after an error its weights are whatever the last step left.
        tokenizer: the model's.
        behavior: examples of the behavior; with `rejected` for DPO and ORPO. SFT ignores `rejected`.
        general: examples that keep the model's abilities; only their answers' likelihood counts.
        settings: hyper-parameters.
        work_dir: an existing folder for the run's checkpoints.
        callbacks: who else takes part.
        resume: go on from the newest checkpoints in `work_dir`.

    Returns:
        The report. When the guard stopped the run, the model has the weights of the last good checkpoint.

    Raises:
        DataError: data that cannot be used (too few general examples, over-long dialogues…).
        UsageError: weights of the wrong dtype, or nothing to train.
        DivergedError: loss or weights became NaN or Inf, or the run collapsed, with no good state before.
        InterruptedRunError: somebody asked to stop; the last checkpoint is that of the last step.
        PersonaError: a checkpoint cannot be written.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    phases = _phases(behavior, general, settings, parameters)
    settings = settings.model_copy(
        update={"lr": phases[0].rate} | ({"dpo_lr": phases[1].rate} if len(phases) > 1 else {})
    )
    reports: list[StepReport] = []
    entries: list[dict[str, Any]] = []
    used_behavior = used_general = steps = 0
    survivals: list[Survival] = []
    before: Path | None = None
    trainer: BehaviorTrainer | None = None
    with trainable(model, settings) as names:
        if settings.context == "frozen":
            check_frozen_context(model, pad_id(tokenizer))
        avoidance = callbacks.avoid(model) if callbacks.avoid is not None else None
        for number, phase in enumerate(phases, start=1):
            plan = plan_batches(
                len(phase.behavior),
                len(phase.general),
                batch_size=settings.batch_size,
                general_ratio=settings.general_ratio,
                seed=settings.seed,
            )
            drawn = [index for batch in plan for index in batch.general]  # a file of general data may be far larger
            pairs = PRESETS[phase.objective].needs_rejected
            encoded = encode_examples(tokenizer, phase.behavior, settings.max_length, with_rejected=pairs)
            encoded_general = encode_examples(
                tokenizer, [phase.general[index] for index in drawn], settings.max_length, with_rejected=False
            )
            folder = work_dir / f"{number}-{phase.objective}"
            guard = CollapseGuard(GuardLimits(), steps=len(plan), method=phase.objective) if settings.guard else None
            trainer = BehaviorTrainer(
                model,
                gather_batches(plan, encoded, dict(zip(drawn, encoded_general, strict=True))),
                phase.objective,
                settings,
                rate=phase.rate,
                pad_id=pad_id(tokenizer),
                folder=folder,
                watch=_watch(callbacks, phase.objective, guard, avoidance),
            )
            _run_phase(trainer, model, folder, callbacks.log, resume=resume, phase_before=before)
            before = folder
            reports += trainer.reports
            if trainer.survival is not None:
                survivals.append(trainer.survival)
            entries += [{"phase": phase.objective, **entry} for entry in (guard.log if guard else [])]
            used_behavior += sum(len(batch.behavior) for batch in plan)
            used_general += len(drawn)
            steps += trainer.state.global_step if trainer.sign is None else _kept_step(folder)
            if trainer.sign is not None:
                break
    assert trainer is not None
    optimizer = getattr(trainer.optimizer, "optimizer", None)
    return TrainingReport(
        settings=settings,
        steps=steps,
        seconds=sum({report.phase: report.seconds for report in reports}.values()),
        tokens=sum(report.tokens for report in reports),
        reports=tuple(reports),
        sides=count_sides(behavior),
        behavior_examples=used_behavior,
        general_examples=used_general,
        behavior_digest=digest_examples(behavior),
        general_digest=digest_examples(general),
        trained=names,
        optimizer_bytes=state_bytes(optimizer) if optimizer is not None else 0,
        survival=min(survivals, key=lambda found: found.cosine, default=None),
        sign=trainer.sign,
        guard=tuple(entries),
    )


def _phases(
    behavior: Sequence[Example], general: Sequence[Example], settings: TrainSettings, parameters: int
) -> list[_Phase]:
    """What is trained how; no example is used in two phases."""
    objectives = phases_of(settings.method)
    if len(objectives) == 1:
        return [_Phase(objectives[0], behavior, general, settings.rate_of(objectives[0], parameters))]
    first, second = _split(behavior, settings.sft_share, settings.seed)
    if not first or not second:
        raise DataError(
            f"{len(behavior)} examples cannot be divided between two phases", "give at least two, or use one method"
        )
    cut = general_needed(len(first), settings.general_ratio)
    return [
        _Phase(objective, own, others, settings.rate_of(objective, parameters))
        for objective, own, others in zip(objectives, (first, second), (general[:cut], general[cut:]), strict=True)
    ]


def _split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Two parts that have the same share of every side."""
    order = random.Random(seed)
    parts: tuple[list[Example], list[Example]] = ([], [])
    for side in sorted({example.side or "" for example in examples}):
        own = [example for example in examples if (example.side or "") == side]
        order.shuffle(own)
        cut = round(share * len(own))
        parts[0].extend(own[:cut])
        parts[1].extend(own[cut:])
    return parts


def _run_phase(
    trainer: BehaviorTrainer,
    model: nn.Module,
    folder: Path,
    log: RunLog | None,
    *,
    resume: bool,
    phase_before: Path | None,
) -> None:
    """Run a phase from its beginning or from its newest checkpoint; afterwards the model has what is to be kept."""
    if not resume and trainer.args.process_index == 0:
        # Another run's checkpoints must never be taken for a good state of this one.
        shutil.rmtree(folder, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    checkpoint = newest_sound(folder) if resume else None
    if log is not None and resume:
        log.forget_after(trainer.objective, step_of(checkpoint) if checkpoint is not None else 0)
    if checkpoint is not None:
        trainer.resume(checkpoint)
        if log is not None:
            log.event("resumed", phase=trainer.objective, at=step_of(checkpoint))
        if step_of(checkpoint) == len(trainer.batches):
            load_trained(model, checkpoint)
            trainer.state.global_step = step_of(checkpoint)
            return
    if trainer.objective == "dpo" or trainer.watch.guard is not None:
        trainer.note_references()
    problem: DivergedError | None = None
    try:
        with trainer.interrupt:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except DivergedError as error:
        problem = error
    finally:
        # On a GPU the forward pass was wrapped for autocast; a caller must get its own model back.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if problem is None and trainer.asked_to_stop and trainer.sign is None:
        raise InterruptedRunError(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}", "go on with `--resume`"
        )
    if problem is not None and trainer.watch.guard is not None:
        trainer.sign = trainer.watch.guard.not_finite(problem.step)
    if trainer.sign is None:
        if problem is not None:
            raise problem
        return
    good = newest(folder) or (newest(phase_before) if phase_before is not None else None)
    if log is not None:
        log.event("stopped", phase=trainer.objective, **asdict(trainer.sign))
    if good is None:
        raise problem or DivergedError(
            f"{trainer.sign.text} (step {trainer.sign.step} of {trainer.state.max_steps}), and there was no good state "
            "before; nothing was kept",
            f"lower the learning rate (`--lr`, it was {trainer.rate:g}), and look at the data: `persona preflight`",
            step=trainer.sign.step,
        )
    load_trained(model, good)


def _watch(callbacks: Callbacks, phase: Objective, guard: CollapseGuard | None, avoidance: Avoidance | None) -> Watch:
    """A phase's watch, which also writes the log."""
    log = callbacks.log

    def on_step(report: StepReport) -> None:
        if log is not None:
            values = asdict(report)
            log.step(values.pop("phase"), values)
        if callbacks.on_step is not None:
            callbacks.on_step(report)

    return Watch(
        guard=guard,
        checkup=callbacks.checkup if guard is not None else None,
        avoidance=avoidance,
        on_step=on_step,
        on_checkup=(lambda checkup: log.event("checkup", phase=phase, **asdict(checkup))) if log is not None else None,
        snapshots=callbacks.snapshots,
    )


def _kept_step(folder: Path) -> int:
    good = newest(folder)
    return step_of(good) if good is not None else 0
