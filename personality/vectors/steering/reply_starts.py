"""Telling a steered model where the replies of a batch begin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

_STARTS: ContextVar[Tensor | None] = ContextVar("starts", default=None)


@contextlib.contextmanager
def reply_starts(starts: Sequence[int] | Tensor) -> Iterator[None]:
    """In this block, row b of a batch has its first reply token at index `starts[b]` ≥ 1.

    Needed where a text with its reply is put through at once. Without it a prompt's end is taken to be the last token
    of its row, which is so when a model is to answer.

    Args:
        starts: (B,), counted in the row as it is given, padding and cached tokens included.
    """
    token = _STARTS.set(torch.as_tensor(starts, dtype=torch.long))
    try:
        yield
    finally:
        _STARTS.reset(token)


def known_starts() -> Tensor | None:
    """What the block says, int64 (B,); None outside of one."""
    return _STARTS.get()
