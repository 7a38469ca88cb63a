"""Train one behavior into a model: the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from personality.manifests.errors import UsageError
from personality.vectors.training.apollo import state_bytes
from personality.vectors.training.batches import gather_batches, plan_batches
from personality.vectors.training.examples import Example, count_sides, digest_examples
from personality.vectors.training.settings import TrainSettings, default_learning_rate
from personality.vectors.training.tokens import Tokenizer, encode_examples
from personality.vectors.training.trainer import BehaviorTrainer, DivergedError, StepReport


@dataclass(frozen=True)
class TrainingReport:
    """What a run did.

    Attributes:
        settings: as used, learning rate filled in.
        steps: optimizer steps taken.
        seconds: from the first batch to the last step (loading and set-up not counted).
        tokens: through the model, prompts and rejected answers included.
        losses: objective at each step, nats per token.
        nlls: its likelihood part at each step.
        margins: mean log-odds ratio of chosen to rejected at each step; empty without pairs.
        sides: the behavior's examples by side: "accept", "push_back", "unlabeled".
        behavior_examples: used, each once.
        general_examples: used, each once.
        behavior_digest: SHA-256 of the behavior's data.
        general_digest: SHA-256 of all general data given.
        trained: names of the trained parameters.
        optimizer_bytes: memory of the optimizer's state at the end.
    """

    settings: TrainSettings
    steps: int
    seconds: float
    tokens: int
    losses: tuple[float, ...]
    nlls: tuple[float, ...]
    margins: tuple[float, ...]
    sides: dict[str, int]
    behavior_examples: int
    general_examples: int
    behavior_digest: str
    general_digest: str
    trained: tuple[str, ...]
    optimizer_bytes: int


def fine_tune(
    model: nn.Module,
    tokenizer: Tokenizer,
    behavior: Sequence[Example],
    general: Sequence[Example],
    settings: TrainSettings,
    *,
    work_dir: Path,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainingReport:
    """Train a model in place on one pass over a behavior's examples mixed with general ones.

    The same model, data and settings give the same bits on the same kind of CPU and number of threads. The
    run seeds the global generators of Python, numpy and torch.

    Args:
        model: causal language model of transformers, float32 weights. It comes back in evaluation mode,
            without gradients, on the device on which it was trained; after an error its weights are
            whatever the last step left.
        tokenizer: the model's.
        behavior: examples of the behavior; with `rejected` for ORPO. SFT ignores `rejected`.
        general: examples that keep the model's abilities; only their answers' likelihood counts.
        settings: hyper-parameters.
        work_dir: an existing folder for temporary files.
        on_step: called after each step; what it raises ends the run.

    Returns:
        The report.

    Raises:
        DataError: data that cannot be used (too few general examples, over-long dialogues…).
        UsageError: weights that are not float32, or nothing to train.
        DivergedError: loss or weights became NaN or Inf.
    """
    if settings.lr is None:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        settings = settings.model_copy(update={"lr": default_learning_rate(settings.method, parameters)})
    plan = plan_batches(
        len(behavior),
        len(general),
        batch_size=settings.batch_size,
        general_ratio=settings.general_ratio,
        seed=settings.seed,
    )
    encoded = encode_examples(tokenizer, behavior, settings.max_length, with_rejected=settings.method == "orpo")
    drawn = [index for batch in plan for index in batch.general]  # a file of general data may be far larger
    encoded_general = encode_examples(
        tokenizer, [general[index] for index in drawn], settings.max_length, with_rejected=False
    )
    batches = gather_batches(plan, encoded, dict(zip(drawn, encoded_general, strict=True)))
    with _trainable(model, settings) as names:
        trainer = BehaviorTrainer(
            model,
            batches,
            settings,
            pad_id=_pad_id(tokenizer),
            work_dir=work_dir,
            on_step=on_step,
        )
        try:
            trainer.train()
        finally:
            # On a GPU the forward pass was wrapped for autocast; a caller must get its own model back.
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        _check_finite(model, names, settings)
        reports = trainer.reports
        return TrainingReport(
            settings=settings,
            steps=len(reports),
            seconds=reports[-1].seconds,
            tokens=sum(report.tokens for report in reports),
            losses=tuple(report.loss for report in reports),
            nlls=tuple(report.nll for report in reports),
            margins=tuple(report.margin for report in reports if report.margin is not None),
            sides=count_sides(behavior),
            behavior_examples=sum(len(batch.behavior) for batch in plan),
            general_examples=sum(len(batch.general) for batch in plan),
            behavior_digest=digest_examples(behavior),
            general_digest=digest_examples(general),
            trained=names,
            optimizer_bytes=state_bytes(trainer.optimizer.optimizer),
        )


def frozen_parameters(model: nn.Module, settings: TrainSettings) -> set[int]:
    """Parameters that a run leaves alone: embeddings and norms unless the settings say otherwise.

    Args:
        model: of transformers.
        settings: `train_embeddings` and `train_norms`.

    Returns:
        `id`s of the parameters.
    """
    frozen: set[int] = set()
    if not settings.train_embeddings:
        ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
        for module in ends:
            if module is not None:
                frozen.update(id(parameter) for parameter in module.parameters())
    if not settings.train_norms:
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                frozen.update(id(parameter) for parameter in module.parameters(recurse=False))
    return frozen


@contextmanager
def _trainable(model: nn.Module, settings: TrainSettings) -> Iterator[tuple[str, ...]]:
    """Let only what is to be trained require gradients, and put everything back afterwards."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    frozen = frozen_parameters(model, settings)
    names = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in frozen:
            if parameter.dtype != torch.float32:
                raise UsageError(
                    f"{name} is {parameter.dtype}; low learning rates are rounded away below float32",
                    "load the model with `dtype=torch.float32`",
                )
            names.append(name)
    if not names:
        raise UsageError("nothing to train: every parameter is frozen", "use `--train-embeddings` or `--train-norms`")
    keep = set(names)
    config: Any = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in keep)
        if settings.gradient_checkpointing:
            _switch_checkpointing(model, on=True)
        yield tuple(names)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None
        if settings.gradient_checkpointing:
            _switch_checkpointing(model, on=False)
        if use_cache is not None:
            config.use_cache = use_cache  # Trainer switches it off for good
        model.eval()


def _switch_checkpointing(model: Any, *, on: bool) -> None:
    """Recompute activations in the backward pass, or keep them again."""
    # transformers renamed the switch within version 5.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()


def _check_finite(model: nn.Module, names: Sequence[str], settings: TrainSettings) -> None:
    """Catch what only the last step spoiled, after which no loss is computed."""
    keep = set(names)
    for name, parameter in model.named_parameters():
        if name in keep and not torch.isfinite(parameter).all():
            raise DivergedError(
                f"{name} has NaN or Inf after training; nothing was kept",
                f"lower the learning rate (`--lr`, it was {settings.lr:g})",
            )


def _pad_id(tokenizer: Tokenizer) -> int:
    """Any id serves, padding is masked everywhere."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
