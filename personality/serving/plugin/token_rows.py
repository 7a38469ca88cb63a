"""Which row of the steering tables each token of a batch gets."""

from __future__ import annotations

import torch
from torch import Tensor

from personality.serving.steering_table import STATES

NOTHING = 0
"""Row of zeros: of padding, and of everything that no request asked for."""


def first_row(slot: int) -> int:
    """Row of a slot's first state; its other states follow."""
    return 1 + STATES * slot


def row_count(slots: int) -> int:
    """Rows that a table for so many slots has."""
    return first_row(slots)


def rows_of(slots: Tensor, computed: Tensor, prompts: Tensor, scheduled: Tensor) -> Tensor:
    """Rows of a batch's tokens; all arguments int64 (requests,).

    Args:
        slots: each request's slot.
        computed: tokens of each request that are in the cache.
        prompts: length of each request's prompt.
        scheduled: tokens of each request that this pass computes, one request's after another's.

    Returns:
        int64 (tokens,). A token is the prompt's last where its position is `prompts` − 1, before that it belongs to
        the prompt, after it to the reply; whatever part of a request a pass computes.
    """
    request = torch.repeat_interleave(torch.arange(len(scheduled)), scheduled)
    begins = scheduled.cumsum(0) - scheduled
    positions = torch.arange(len(request)) - begins[request] + computed[request]
    last = prompts[request] - 1
    state = (positions >= last).long() + (positions > last).long()
    return 1 + STATES * slots[request] + state
