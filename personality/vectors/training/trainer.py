"""The training loop: transformers' own, with our batches, objectives, optimizer and schedule."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from personality.manifests.errors import PersonaError
from personality.vectors.training.apollo import Apollo
from personality.vectors.training.batches import BatchItem, collate
from personality.vectors.training.objectives import mean_log_probs, orpo_loss, sft_loss, token_log_probs
from personality.vectors.training.settings import Schedule, TrainSettings


class DivergedError(PersonaError):
    """Training left the finite numbers."""

    kind = "diverged"


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: from 1.
        steps: of the whole run.
        loss: the objective, nats per token.
        nll: its likelihood part, over chosen and general answers.
        margin: mean log-odds ratio of chosen to rejected before the step; None without pairs.
        lr: rate of this step.
        tokens: of the batch, prompts and rejected answers included, padding not.
        seconds: since the training began.
    """

    step: int
    steps: int
    loss: float
    nll: float
    margin: float | None
    lr: float
    tokens: int
    seconds: float


class BehaviorTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer on planned batches.

    Args:
        model: causal language model with float32 weights; what is to be trained requires gradients.
        batches: in training order, each one step.
        settings: with the learning rate filled in.
        pad_id: token id for padding.
        work_dir: folder that Trainer may use; nothing is left in it.
        on_step: gets the report of each step.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[BatchItem],
        settings: TrainSettings,
        *,
        pad_id: int,
        work_dir: Path,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.settings = settings
        self.reports: list[StepReport] = []
        self.last: dict[str, float | None] = {}
        on_gpu = torch.cuda.is_available()
        arguments = TrainingArguments(
            output_dir=str(work_dir),
            per_device_train_batch_size=1,  # an element of the data set is a whole planned batch
            num_train_epochs=1,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            use_cpu=not on_gpu,
            bf16=on_gpu and torch.cuda.is_bf16_supported(),  # autocast only: the weights stay float32
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=on_gpu,
        )
        if on_gpu:
            arguments._n_gpu = 1  # several devices are `accelerate launch`'s business, not DataParallel's
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=list(batches),
            data_collator=partial(_collate_one, pad_id=pad_id),
            callbacks=[_Reporter(self, on_step)],
        )
        self.remove_callback(PrinterCallback)
        self._keep_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        """The plan is the order."""
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the settings name, over what requires gradients.

        Args:
            model: instead of the trainer's own (a wrapped one).

        Returns:
            Apollo or AdamW.
        """
        if self.optimizer is None:
            source = self.model if model is None else model
            self.optimizer = make_optimizer([p for p in source.parameters() if p.requires_grad], self.settings)
        return cast(torch.optim.Optimizer, self.optimizer)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """The schedule that the settings name.

        Args:
            num_training_steps: of the whole run.
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
        """The objective of one batch, in one forward pass.

        Args:
            model: as wrapped by Trainer.
            inputs: from `collate`.
            return_outputs: also return the model's output.
            num_items_in_batch: ignored; every batch is one step.

        Returns:
            Scalar loss, and the output if asked for.

        Raises:
            DivergedError: the loss is not finite.
        """
        log_probs, mask, outputs = response_log_probs(model, inputs, keep_logits=self._keep_logits)
        pairs = int(inputs["pairs"])
        rows = log_probs.shape[0] - pairs
        nll = sft_loss(log_probs[:rows], mask[:rows])
        loss, margin = nll, None
        if pairs:
            means = mean_log_probs(log_probs, mask)
            orpo = orpo_loss(nll, means[:pairs], means[rows:], self.settings.orpo_lambda)
            loss, margin = orpo.loss, float(orpo.margin)
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise DivergedError(
                f"the loss is {float(loss.detach())} at step {step} of {self.state.max_steps}; nothing was kept",
                f"lower the learning rate (`--lr`, it was {self.settings.lr:g}); if step 1 fails already, "
                "check the base for NaN or Inf",
            )
        self.last = {
            "loss": float(loss.detach()),
            "nll": float(nll.detach()),
            "margin": margin,
            "tokens": int(inputs["attention_mask"].sum()),
        }
        return (loss, outputs) if return_outputs else loss


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Turns Trainer's events into step reports."""

    def __init__(self, trainer: BehaviorTrainer, on_step: Callable[[StepReport], None] | None) -> None:
        self.trainer = trainer
        self.on_step = on_step
        self.began = 0.0
        self.rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the rate: afterwards the schedule has already moved on."""
        self.rate = float(self.trainer.optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step."""
        last = self.trainer.last
        report = StepReport(
            step=state.global_step,
            steps=state.max_steps,
            loss=float(last["loss"] or 0.0),
            nll=float(last["nll"] or 0.0),
            margin=last["margin"],
            lr=self.rate,
            tokens=int(last["tokens"] or 0),
            seconds=time.perf_counter() - self.began,
        )
        self.trainer.reports.append(report)
        if self.on_step is not None:
            self.on_step(report)


def make_optimizer(params: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Args:
        params: what is trained.
        settings: with the learning rate filled in.

    Returns:
        Apollo, Apollo-Mini (one factor a matrix) or AdamW.
    """
    rate = settings.lr or 0.0
    if settings.optimizer == "adamw":
        matrices = [p for p in params if p.ndim >= 2]
        others = [p for p in params if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)
    return Apollo(
        params,
        lr=rate,
        rank=settings.effective_rank,
        scale=settings.alpha,
        scale_type="tensor" if settings.optimizer == "apollo-mini" else "channel",
        update_proj_gap=settings.update_proj_gap,
        weight_decay=settings.weight_decay,
        norm_growth=settings.norm_growth,
        seed=settings.seed,
    )


def rate_factor(step: int, *, steps: int, warmup: float, schedule: Schedule) -> float:
    """Learning rate of a step as a share of its peak.

    Runs here may have five steps, so none is spent at rate zero: warm-up begins at 1/w of the peak for w
    steps, and the last step still has a rate above 0.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: share of the steps in which the rate rises (rounded to whole steps).
        schedule: "cosine", "linear" or "constant" after that.

    Returns:
        In (0, 1] for step < steps.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def response_log_probs(model: nn.Module, inputs: dict[str, Tensor], *, keep_logits: bool) -> tuple[Tensor, Tensor, Any]:
    """Log-probabilities of a batch's tokens where any row has a response.

    Args:
        model: causal language model.
        inputs: from `collate`, T positions.
        keep_logits: the model can restrict logits to given positions. Logits are the largest tensor of a
            training step, and those over prompts are not needed.

    Returns:
        log-probabilities float32 (B, K), response mask bool (B, K) over the K positions kept, and the
        model's output.
    """
    ids, mask = inputs["input_ids"], inputs["response_mask"]
    targets = mask.any(dim=0).nonzero().squeeze(-1)  # never 0: a response has a prompt before it
    arguments: dict[str, Any] = {"attention_mask": inputs["attention_mask"], "use_cache": False}
    if keep_logits:
        arguments["logits_to_keep"] = targets - 1
    outputs = model(input_ids=ids, **arguments)
    logits = outputs.logits if keep_logits else outputs.logits[:, targets - 1]
    return token_log_probs(logits, ids[:, targets]), mask[:, targets], outputs


def _collate_one(items: list[BatchItem], pad_id: int) -> dict[str, Tensor]:
    """The one planned batch that the data loader hands over, as tensors."""
    return collate(items[0], pad_id)
