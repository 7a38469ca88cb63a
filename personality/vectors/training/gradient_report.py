"""What the gradient of a frozen context keeps of the full one, group by group, and what it saves."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from personality.manifests.errors import DataError, UsageError
from personality.vectors.training.batches import BatchItem, collate
from personality.vectors.training.frozen_context import collate_frozen, frozen_response_log_probs
from personality.vectors.training.objectives import sft_loss
from personality.vectors.training.response import keeps_logits, response_log_probs
from personality.vectors.training.selection import group_of

Loss = Callable[[Tensor, Tensor, BatchItem], Tensor]
"""Scalar loss of log-probabilities (B, K) and response mask (B, K), rows as in `collate`, of a batch."""


@dataclass(frozen=True)
class GroupGradient:
    """One group's frozen gradient beside its full one, both summed over all batches.

    Attributes:
        group: from `group_of`.
        parameters: elements.
        cosine: of the two; 0 where one of them is zero.
        norm_ratio: norm of the frozen to that of the full one; 0 where the full one is zero.
    """

    group: str
    parameters: int
    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class PassCost:
    """What one way costs.

    Attributes:
        seconds: of a batch, forward and backward, median over the batches.
        memory_bytes: most that a batch needed beside weights and gradients. On a GPU the allocator's peak; on a CPU
            the storages that autograd keeps for the backward pass.
    """

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class GradientReport:
    """The comparison.

    Attributes:
        groups: by name, and last of all "all", every compared parameter together.
        full: cost of the full passes.
        frozen: cost of the frozen ones.
        batches: compared.
        context_tokens: of the batches, each distinct context once.
        answer_tokens: of the batches, rejected answers included.
    """

    groups: tuple[GroupGradient, ...]
    full: PassCost
    frozen: PassCost
    batches: int
    context_tokens: int
    answer_tokens: int

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "groups": [vars(group) for group in self.groups],
            "full": vars(self.full),
            "frozen": vars(self.frozen),
            "batches": self.batches,
            "context_tokens": self.context_tokens,
            "answer_tokens": self.answer_tokens,
        }


def chosen_loss(log_probs: Tensor, mask: Tensor, item: BatchItem) -> Tensor:
    """SFT's loss: the rows of rejected answers, which are the last, do not count.

    Args:
        log_probs: (B, K).
        mask: bool (B, K).
        item: the batch.

    Returns:
        Scalar, nats per token.
    """
    rows = len(item.behavior) + len(item.general)
    return sft_loss(log_probs[:rows], mask[:rows])


def compare_gradients(
    model: nn.Module,
    batches: Sequence[BatchItem],
    *,
    pad_id: int,
    selected: Collection[str] | None = None,
    objective: Loss = chosen_loss,
    on_batch: Callable[[int, int], None] | None = None,
) -> GradientReport:
    """Measure a frozen context's gradient against the full one; no weight is changed.

    Both ways take turns, so that a machine that slows down slows both.

    Args:
        model: causal language model of transformers, on its device and in the mode in which to compare.
        batches: at least one.
        pad_id: token id for padding.
        selected: names of the parameters to compare, the only ones that get a gradient; None for those that
            require one.
        objective: the loss.
        on_batch: told how many batches of how many are done.

    Returns:
        The report.

    Raises:
        DataError: no batches.
        UsageError: no parameters, or a model that cannot continue from a frozen context.
    """
    if not batches:
        raise DataError("no examples to compare gradients on", "give a file with at least one")
    keep_logits = keeps_logits(model)
    ways: dict[str, tuple[Any, Any]] = {
        "full": (collate, response_log_probs),
        "frozen": (collate_frozen, frozen_response_log_probs),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory = dict.fromkeys(ways, 0)
    context_tokens = answer_tokens = 0
    with _requiring(model, selected) as parameters:
        sums = {way: [torch.zeros_like(p, dtype=torch.float32) for p in parameters.values()] for way in ways}
        device = next(iter(parameters.values())).device
        for number, item in enumerate(batches, start=1):
            for way, (make, log_probs_of) in ways.items():
                inputs = {name: tensor.to(device) for name, tensor in make(item, pad_id).items()}
                with _metered(model, device) as figures:
                    # Without the model's output, which would keep the context's states until the next batch.
                    log_probs, mask = log_probs_of(model, inputs, keep_logits=keep_logits)[:2]
                    loss = objective(log_probs, mask, item)
                    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                seconds[way].append(figures[0])
                memory[way] = max(memory[way], int(figures[1]))
                for index, gradient in enumerate(found):
                    if gradient is not None:
                        sums[way][index] += gradient
            context_tokens += int(inputs["context_mask"].sum())
            answer_tokens += int(inputs["response_mask"].sum())
            if on_batch is not None:
                on_batch(number, len(batches))
        groups = _compare(list(parameters), sums["full"], sums["frozen"])
    full, frozen = (PassCost(statistics.median(seconds[way]), memory[way]) for way in ways)
    return GradientReport(groups, full, frozen, len(batches), context_tokens, answer_tokens)


def _compare(names: Sequence[str], full: Sequence[Tensor], frozen: Sequence[Tensor]) -> tuple[GroupGradient, ...]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        members[group_of(name)].append(index)
    order = [*sorted(members.items()), ("all", list(range(len(names))))]
    groups = []
    for group, indices in order:
        # In float64, since a sum over millions of float32 products loses the digits that matter here.
        dot, square, frozen_square = (
            sum(float((a[i].double() * b[i].double()).sum()) for i in indices)
            for a, b in ((full, frozen), (full, full), (frozen, frozen))
        )
        norms = (square * frozen_square) ** 0.5
        groups.append(
            GroupGradient(
                group=group,
                parameters=sum(full[i].numel() for i in indices),
                cosine=dot / norms if norms else 0.0,
                norm_ratio=(frozen_square / square) ** 0.5 if square else 0.0,
            )
        )
    return tuple(groups)


@contextmanager
def _metered(model: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Time and memory of a forward and backward pass inside the block.

    Yields:
        A list that holds seconds and bytes when the block has ended.
    """
    figures: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, began = torch.cuda.memory_allocated(device), time.perf_counter()
        yield figures
        torch.cuda.synchronize(device)
        figures += [time.perf_counter() - began, torch.cuda.max_memory_allocated(device) - before]
        return
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would refer to the graph that refers to it

    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield figures
    figures += [time.perf_counter() - began, sum(kept.values())]


@contextmanager
def _requiring(model: nn.Module, selected: Collection[str] | None) -> Iterator[dict[str, nn.Parameter]]:
    """Let only the selected parameters require a gradient inside the block."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wanted = {name for name, required in before.items() if required} if selected is None else set(selected)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in wanted}
    if not parameters:
        raise UsageError("there are no parameters to compare", "choose others with `--only` or `--layers`")
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        yield parameters
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
