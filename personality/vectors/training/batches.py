"""Which examples meet in which batch, and batches as tensors."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from personality.manifests.errors import DataError, UsageError
from personality.vectors.training.tokens import Encoded, EncodedExample


@dataclass(frozen=True)
class Batch:
    """Indices of one batch's examples, into the behavior's data and into the general data."""

    behavior: tuple[int, ...]
    general: tuple[int, ...]


def general_needed(n_behavior: int, general_ratio: float) -> int:
    """How many general examples go with a behavior's.

    Args:
        n_behavior: examples of the behavior.
        general_ratio: general examples for each of them.

    Returns:
        The product, rounded up.
    """
    # The tiny subtrahend keeps 0.1 * 30 = 3.0000000000000004 from asking for a fourth.
    return math.ceil(n_behavior * general_ratio - 1e-9)


def plan_batches(n_behavior: int, n_general: int, *, batch_size: int, general_ratio: float, seed: int) -> list[Batch]:
    """Spread one pass over the data so that every batch has its share of general examples.

    Args:
        n_behavior: examples of the behavior; each is used exactly once.
        n_general: general examples at hand; as many as the ratio asks for are drawn, each at most once.
        batch_size: most examples of a batch, both kinds together.
        general_ratio: general examples for each one of the behavior; 0 for none.
        seed: of the order and of the draw.

    Returns:
        The batches in training order. Their sizes, and their numbers of general examples, differ by at
        most 1.

    Raises:
        DataError: no examples, or too few general ones.
    """
    if n_behavior < 1:
        raise DataError("no examples of the behavior", "give at least one with `--data FILE`")
    needed = general_needed(n_behavior, general_ratio)
    if n_general < needed:
        raise DataError(
            f"{n_behavior} examples of the behavior need {needed} general ones at ratio {general_ratio:g}, "
            f"there are {n_general}",
            f"add {needed - n_general} lines to the file given with `--general`, or lower `--general-ratio`",
        )
    order = random.Random(seed)
    behavior = list(range(n_behavior))
    general = list(range(n_general))
    order.shuffle(behavior)
    order.shuffle(general)
    plan = []
    for n_own, n_other in _shares(n_behavior, needed, batch_size):
        plan.append(Batch(tuple(behavior[:n_own]), tuple(general[:n_other])))
        behavior, general = behavior[n_own:], general[n_other:]
    return plan


def _shares(n_behavior: int, n_general: int, batch_size: int) -> list[tuple[int, int]]:
    """Numbers of either kind in each batch: sizes, and general shares, as even as they can be."""
    total = n_behavior + n_general
    count = math.ceil(total / batch_size)
    general = [(i + 1) * n_general // count - i * n_general // count for i in range(count)]
    sizes = [total // count] * count
    # Where there is one general example more, the batch is the larger one: so no batch outgrows its size or
    # is left without an example of the behavior.
    for i in sorted(range(count), key=lambda i: -general[i])[: total % count]:
        sizes[i] += 1
    return [(size - other, other) for size, other in zip(sizes, general, strict=True)]


@dataclass(frozen=True)
class BatchItem:
    """One batch's examples, tokenized."""

    behavior: tuple[EncodedExample, ...]
    general: tuple[EncodedExample, ...]

    def share(self, rank: int, world: int) -> BatchItem:
        """What one of several processes computes of this batch: its examples are dealt out like cards.

        Args:
            rank: of the process, from 0.
            world: number of processes.

        Raises:
            UsageError: there are more processes than examples.
        """
        size = len(self.behavior) + len(self.general)
        if size < world:
            raise UsageError(
                f"a batch of {size} examples cannot be shared by {world} processes",
                f"use a larger batch (`--batch-size {2 * world}`), or fewer processes",
            )
        offset = len(self.behavior)
        mine = [i for i in range(size) if i % world == rank]
        return BatchItem(
            tuple(self.behavior[i] for i in mine if i < offset),
            tuple(self.general[i - offset] for i in mine if i >= offset),
        )

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers to learn."""
        return sum(example.chosen.stop - example.chosen.start for example in (*self.behavior, *self.general))

    @property
    def pairs(self) -> int:
        """Examples with a rejected answer."""
        return sum(example.rejected is not None for example in self.behavior)


def gather_batches(
    plan: Sequence[Batch], behavior: Sequence[EncodedExample], general: Mapping[int, EncodedExample]
) -> list[BatchItem]:
    """Put the tokenized examples where the plan wants them.

    Args:
        plan: from `plan_batches`.
        behavior: the behavior's examples.
        general: those general examples that the plan uses, by index.

    Returns:
        One item for each batch, in order.
    """
    return [
        BatchItem(tuple(behavior[i] for i in batch.behavior), tuple(general[i] for i in batch.general))
        for batch in plan
    ]


def padded(rows: Sequence[Sequence[int]], pad_id: int, *, least: int = 0, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids of different lengths as one block.

    Args:
        rows: token ids, at least one row.
        pad_id: any token id; it is masked.
        least: width that the block has in any case.
        left: pad on the left, where what follows must follow directly.

    Returns:
        ids and mask, int64 (rows, width).
    """
    width = max(least, *(len(row) for row in rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.int64)
        mask[number, place] = 1
    return ids, mask


def collate(item: BatchItem, pad_id: int) -> dict[str, Tensor]:
    """Make tensors of a batch: all answers to learn first, then the rejected ones, in one padded block.

    Padding is on the right, where causal models never look from a real token, so a row's log-probabilities
    are those that it would have alone.

    Args:
        item: the batch; either all or none of the behavior's examples have a rejected answer.
        pad_id: any token id; it is masked everywhere.

    Returns:
        `input_ids` int64 (B, T), `attention_mask` int64 (B, T), `response_mask` bool (B, T), and `pairs`
        int64 (): the number of pairs. Rows: the behavior's chosen answers, general answers, then (pairs only)
        the rejected answers in the order of the chosen.
    """
    rows: list[Encoded] = [example.chosen for example in (*item.behavior, *item.general)]
    rejected = [example.rejected for example in item.behavior if example.rejected is not None]
    rows += rejected
    ids, attention = padded([row.ids for row in rows], pad_id)
    response = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        response[i, row.start : row.stop] = True
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "response_mask": response,
        "pairs": torch.tensor(len(rejected)),
    }
