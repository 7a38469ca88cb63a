"""Counting magnitudes by their float32 patterns; see `magnitudes` for what the histograms say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from personality.vectors.magnitudes import BINS, LOWER_BITS, Counted, Integers, Magnitudes

_WAITING_PATTERNS = 1 << 18
_ELEMENTS_PER_PATTERN = 16
"""A tensor with more patterns, besides bfloat16s, than one for so many elements is counted by upper bits alone."""
_TRIED_ELEMENTS = 1 << 18
"""So is one with more than half no bfloat16s among its first elements: a sign of float32 training."""


class MagnitudeCounter:
    """Counts a vector's magnitudes: one tensor after another, block by block."""

    def __init__(self) -> None:
        self._done: dict[str, Counted] = {}
        self._current = ""

    def begin(self, name: str, elements: int) -> None:
        """What is added from here on belongs to this tensor, in order; in how many blocks changes nothing.

        Args:
            name: of the base tensor.
            elements: how many it has.
        """
        self._finish()
        self._current = name
        self._upper = np.zeros(BINS, dtype=np.int64)
        self._most_patterns = max(LOWER_BITS, elements // _ELEMENTS_PER_PATTERN)
        self._most_tried = min(elements, _TRIED_ELEMENTS) // 2
        self._to_try = _TRIED_ELEMENTS
        self._exact = True
        self._between: list[tuple[Integers, Integers]] = []
        self._waiting = 0

    def add(self, block: Tensor) -> None:
        """Count a block, any float dtype and shape."""
        upper, patterns = magnitude_bits(block)
        self._upper += torch.bincount(upper, minlength=BINS).numpy()
        if self._exact and patterns is not None:
            self._add_between(patterns)

    def _add_between(self, patterns: Tensor) -> None:
        """Count those that are no bfloat16s, each by itself, unless there are too many."""
        between = (patterns & LOWER_BITS) != 0
        tried = between[: self._to_try]
        self._to_try -= len(tried)
        self._most_tried -= int(tried.sum())
        self._exact = self._most_tried >= 0
        found = patterns[between].numpy() if self._exact else np.zeros(0, dtype=np.int32)
        if not len(found):
            return
        self._between.append(np.unique(found, return_counts=True))
        self._waiting += len(self._between[-1][0])
        if self._waiting > _WAITING_PATTERNS:
            self._between = [_merged(self._between)]
            self._waiting = 0
            self._exact = len(self._between[0][0]) <= self._most_patterns

    def result(self) -> Magnitudes:
        """What was counted."""
        self._finish()
        return Magnitudes(self._done)

    def _finish(self) -> None:
        if not self._current:
            return
        more, counts = _merged(self._between)
        exact = self._exact and len(more) <= self._most_patterns
        upper = self._upper
        if exact:
            upper = upper.copy()
            np.subtract.at(upper, more >> 16, counts)
        bins = np.flatnonzero(upper)
        patterns, counts = _merged([(bins << 16, upper[bins]), *([(more, counts)] * exact)])
        self._done[self._current] = Counted(patterns, counts, exact)


def _merged(histograms: Sequence[tuple[Integers, Integers]]) -> tuple[Integers, Integers]:
    """Histograms, patterns and counts, as one."""
    nothing = np.zeros(0, dtype=np.int64)
    every = np.concatenate([nothing, *(patterns for patterns, _ in histograms)])
    patterns, places = np.unique(every, return_inverse=True)
    counts = np.zeros(len(patterns), dtype=np.int64)
    np.add.at(counts, places, np.concatenate([nothing, *(counts for _, counts in histograms)]))
    return patterns, counts


def magnitude_bits(block: Tensor) -> tuple[Tensor, Tensor | None]:
    """The upper 16 bits of each float32 magnitude as integers, flat, and all 32; None where the lower are all zero."""
    flat = block.detach().reshape(-1)
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16) & 0x7FFF, None
    bits = flat.float().view(torch.int32) & 0x7FFFFFFF
    return bits >> 16, bits
