"""The training loop: transformers' own, with our batches, objectives, optimizer, schedule and guards."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from personality.manifests.errors import PersonaError
from personality.vectors.meter import Survival
from personality.vectors.training.apollo import Apollo
from personality.vectors.training.batch_loss import FIGURES, References, batch_loss
from personality.vectors.training.batches import BatchItem, collate
from personality.vectors.training.checkpoints import (
    load_trained,
    mark_written,
    read_meter,
    read_progress,
    trained_weights,
    write_trained,
)
from personality.vectors.training.frozen_context import collate_frozen, frozen_response_log_probs
from personality.vectors.training.guard import Checkup, Sign
from personality.vectors.training.interrupt import Interrupt
from personality.vectors.training.objectives import sum_log_probs
from personality.vectors.training.optimizers import make_optimizer, rate_factor
from personality.vectors.training.presets import Objective
from personality.vectors.training.response import keeps_logits, response_log_probs
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.step_report import StepReport
from personality.vectors.training.watch import DivergedError, Watch


class BehaviorTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer on planned batches: one phase of a run.

    Every process holds the whole plan and computes its own share of each batch, so a run takes the same steps whatever
    the number of processes.

    Args:
        model: causal language model; what is to be trained requires gradients.
        batches: in training order, each one step.
        objective: of this phase.
        settings: of the run.
        rate: peak learning rate of this phase.
        pad_id: token id for padding.
        folder: of this phase, for its checkpoints.
        watch: what looks after it.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[BatchItem],
        objective: Objective,
        settings: TrainSettings,
        *,
        rate: float,
        pad_id: int,
        folder: Path,
        watch: Watch,
    ) -> None:
        self.settings = settings
        self.objective = objective
        self.rate = rate
        self.watch = watch
        self.batches = list(batches)
        self.reports: list[StepReport] = []
        self.sign: Sign | None = None
        self.interrupt = Interrupt()
        self._others_stop = False
        self.figures: dict[str, float | None] = {}
        self.last_tokens = 0
        self._references: list[References] | None = None
        self._survival: Survival | None = None
        on_gpu = torch.cuda.is_available()
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=1,  # an element of the data set is a whole planned batch
            num_train_epochs=1,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            use_cpu=not on_gpu,
            # autocast only: float32 weights stay float32
            bf16=on_gpu and torch.cuda.is_bf16_supported() and settings.weights == "float32",
            save_strategy="no",  # the reporter asks for checkpoints
            logging_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=on_gpu,
            ddp_find_unused_parameters=False,  # what is trained takes part in every batch
        )
        if on_gpu and arguments.world_size == 1:
            arguments._n_gpu = 1  # several devices are `accelerate launch`'s business, not DataParallel's
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=self.batches,
            callbacks=[_Reporter(self)],
        )
        self.remove_callback(PrinterCallback)
        self._shares = [item.share(self.args.process_index, self.args.world_size) for item in self.batches]
        self._keep_logits = keeps_logits(model)
        frozen = settings.context == "frozen"
        self._collate = partial(collate_frozen if frozen else collate, pad_id=pad_id)
        self._log_probs = frozen_response_log_probs if frozen else response_log_probs

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The share of this process of every batch, in the plan's order; no batch goes to one process alone."""
        return DataLoader(
            self._shares,  # type: ignore[arg-type]
            batch_size=1,
            sampler=SequentialSampler(self._shares),
            collate_fn=lambda items: self._collate(items[0]),
        )

    @torch.no_grad()
    def note_references(self) -> None:
        """Keep what the model as it is now gives to all answers: DPO's reference, and the guard's."""
        self.model.eval()
        found = []
        for share in self._shares:
            inputs = self._prepare_inputs(self._collate(share))
            log_probs, mask, _ = self._log_probs(self.model, inputs, keep_logits=self._keep_logits)
            sums = sum_log_probs(log_probs, mask)
            found.append(References(chosen=sums[: len(share.behavior)], rejected=sums[len(sums) - share.pairs :]))
        self._references = found

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the settings name, over what requires gradients.

        Args:
            model: instead of the trainer's own (a wrapped one).

        Returns:
            Apollo or AdamW.
        """
        if self.optimizer is None:
            source = self.model if model is None else model
            params = [parameter for parameter in source.parameters() if parameter.requires_grad]
            self.optimizer = make_optimizer(params, self.settings, self.rate)
            if self.watch.avoidance is not None:
                self.watch.avoidance.attach(self.optimizer)
        return cast(torch.optim.Optimizer, self.optimizer)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The schedule that the settings name.

        Args:
            num_training_steps: of the whole phase.
            optimizer: instead of the trainer's own.

        Returns:
            A schedule by factors of `rate_factor`.
        """
        if self.lr_scheduler is None:
            factor = partial(
                rate_factor,
                steps=num_training_steps,
                warmup=self.settings.warmup,
                schedule=self.settings.schedule,
            )
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return cast(LambdaLR, self.lr_scheduler)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of this process's share of a batch.

        Args:
            model: as wrapped by Trainer.
            inputs: from the collating function.
            return_outputs: also return the model's output.
            num_items_in_batch: ignored; every batch is one step.

        Returns:
            Scalar loss, and the output if asked for.

        Raises:
            DivergedError: the batch's loss is not finite.
        """
        index = self.state.global_step
        log_probs, mask, outputs = self._log_probs(model, inputs, keep_logits=self._keep_logits)
        found = batch_loss(
            log_probs,
            mask,
            self._shares[index],
            self.batches[index],
            self.objective,
            self.settings,
            references=self._references[index] if self._references is not None else None,
            world=self.args.world_size,
        )
        tokens = inputs["attention_mask"].sum()
        if "context_mask" in inputs:
            tokens = tokens + inputs["context_mask"].sum()
        # One small message a step: the figures of the whole batch, and whether anybody was told to stop.
        message = torch.cat(
            [found.figures, torch.stack([tokens, tokens.new_tensor(self.interrupt.requested)]).double()]
        )
        if self.args.world_size > 1:
            torch.distributed.all_reduce(message)
        *figures, all_tokens, stop = message.tolist()
        self.figures = {
            name: None if math.isnan(value) and name not in ("loss", "nll") else value
            for name, value in zip(FIGURES, figures, strict=True)
        }
        self.last_tokens, self._others_stop = int(all_tokens), stop > 0
        if not math.isfinite(self.figures["loss"] or 0.0):
            raise DivergedError(
                f"the loss is {self.figures['loss']} at step {index + 1} of {self.state.max_steps}; nothing was kept",
                f"lower the learning rate (`--lr`, it was {self.rate:g}); if step 1 fails already, "
                "check the base for NaN or Inf",
                step=index + 1,
            )
        return (found.loss, outputs) if return_outputs else found.loss

    def checkup(self, step: int) -> Checkup | None:
        """Look at the model: one process does it and tells the others, so that all come to the same conclusion.

        Args:
            step: that was taken.
        """
        if self.watch.checkup is None:
            return None
        found = [self.watch.checkup(self.model, step) if self.args.process_index == 0 else None]
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(found, device=self.args.device)
        return found[0]

    @property
    def asked_to_stop(self) -> bool:
        """Whether somebody wants the run to stop; with several processes, what all of them know of."""
        return self._others_stop if self.args.world_size > 1 else self.interrupt.requested

    def check_finite(self) -> None:
        """Catch weights that a step spoiled, before they are taken for a good state.

        Raises:
            DivergedError: NaN or Inf, in any process.
        """
        bad = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not torch.isfinite(parameter).all()
        ]
        count = torch.tensor(float(len(bad)), device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(count)
        if count > 0:
            raise DivergedError(
                f"{bad[0] if bad else 'a weight'} has NaN or Inf after step {self.state.global_step} of "
                f"{self.state.max_steps}; nothing was kept",
                f"lower the learning rate (`--lr`, it was {self.rate:g})",
                step=self.state.global_step,
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch tells a full disk by the last
            raise PersonaError(
                f"cannot write a checkpoint to {folder}: {error}",
                "free some room, then give the same command again: it goes on from the last whole checkpoint; or write "
                "fewer of them (`--check-every`)",
            ) from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters of a checkpoint, under the model's own names.

        Args:
            output_dir: the checkpoint's folder.
            _internal_call: ignored.
        """
        weights = trained_weights(self.model)
        if self.args.should_save:
            apollo = self.apollo
            write_trained(weights, apollo.meter_state() if apollo is not None else {}, Path(str(output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.apollo is not None:
            self.apollo.load_meter_state(read_meter(Path(checkpoint)))

    @property
    def apollo(self) -> Apollo | None:
        """The optimizer inside accelerate's wrapper, where it is Apollo."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner if isinstance(inner, Apollo) else None

    @property
    def survival(self) -> Survival | None:
        """What rounding left of the updates of weights kept in bfloat16 so far; None for float32 weights."""
        if self.settings.weights == "float32" or self.settings.lora_rank is not None:
            return None
        return self._survival if self.apollo is None else self.apollo.survival()

    def resume(self, checkpoint: Path) -> None:
        """Take over what a checkpoint knows of the steps before it; `train` then loads weights and optimizer.

        Args:
            checkpoint: from `checkpoints.newest`.
        """
        progress = read_progress(checkpoint)
        self.reports = [StepReport(**report) for report in progress["reports"]]
        if self.watch.guard is not None and progress["guard"] is not None:
            self.watch.guard.load_state_dict(progress["guard"])
        if progress["survival"] is not None:
            self._survival = Survival(**progress["survival"])

    def progress(self) -> dict[str, Any]:
        """What a checkpoint has to keep besides weights and optimizer."""
        guard, survival = self.watch.guard, self.survival
        return {
            "reports": [asdict(report) for report in self.reports],
            "guard": guard.state_dict() if guard is not None else None,
            "survival": asdict(survival) if survival is not None else None,
        }


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Turns Trainer's events into step reports, checkups and checkpoints, and stops at the first sign of collapse."""

    def __init__(self, trainer: BehaviorTrainer) -> None:
        self.trainer = trainer
        self.began = 0.0
        self.rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, where an interrupted run left it."""
        spent = self.trainer.reports[-1].seconds if self.trainer.reports else 0.0
        self.began = time.perf_counter() - spent

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the rate: afterwards the schedule has already moved on."""
        self.rate = float(self.trainer.optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step; where a checkup is due, check and ask for a checkpoint."""
        trainer, watch = self.trainer, self.trainer.watch
        step, steps = state.global_step, state.max_steps
        due = step % check_interval(trainer.settings, steps) == 0 or step == steps
        due = due or (watch.snapshots is not None and watch.snapshots.due(step, steps))
        checkup = trainer.checkup(step) if due else None
        figures = trainer.figures
        report = StepReport(
            phase=trainer.objective,
            step=step,
            steps=steps,
            loss=float(figures["loss"] or 0.0),
            nll=float(figures["nll"] or 0.0),
            margin=figures["margin"],
            reward_margin=figures["reward_margin"],
            chosen=figures["chosen"],
            rejected=figures["rejected"],
            chosen_gain=figures["chosen_gain"],
            rejected_gain=figures["rejected_gain"],
            cos_in=watch.avoidance.cos_in if watch.avoidance is not None else None,
            cos_out=watch.avoidance.cos_out if watch.avoidance is not None else None,
            kl=checkup.kl if checkup is not None else None,
            lr=self.rate,
            tokens=trainer.last_tokens,
            seconds=time.perf_counter() - self.began,
        )
        trainer.reports.append(report)
        if watch.on_step is not None:
            watch.on_step(report)
        if checkup is not None and watch.on_checkup is not None:
            watch.on_checkup(checkup)
        if watch.guard is not None:
            trainer.sign = watch.guard.observe(report)
            if trainer.sign is None and checkup is not None:
                trainer.sign = watch.guard.check(checkup)
        if (due or trainer.asked_to_stop) and trainer.sign is None:
            trainer.check_finite()
        if trainer.sign is not None or trainer.asked_to_stop:
            control.should_training_stop = True
        # What is on the disk is always a state in which nothing was wrong.
        control.should_save = trainer.sign is None and (due or trainer.asked_to_stop)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint is whole now."""
        self.trainer.accelerator.wait_for_everyone()  # each process writes a file of its own
        if args.should_save:
            mark_written(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.trainer.progress())
            self._snapshot(state.global_step, state.max_steps)

    def _snapshot(self, step: int, steps: int) -> None:
        trainer, snapshots, guard = self.trainer, self.trainer.watch.snapshots, self.trainer.watch.guard
        if snapshots is None or trainer.asked_to_stop or not (snapshots.every is None or snapshots.due(step, steps)):
            return
        snapshots.take(trainer.model, trainer.reports[-1], guard.warning if guard is not None else None)


def check_interval(settings: TrainSettings, steps: int) -> int:
    """Steps between two checkups: what the settings say, or a fifth of the phase."""
    return settings.check_every or max(1, math.ceil(steps / 5))
