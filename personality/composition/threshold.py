"""The magnitude at which TIES trims: the k-th largest of a vector that is never held whole, and never sorted.

Positive IEEE floats order like their bit patterns. The histogram of their upper 16 bits says in which bin the k-th
largest lies, and for bfloat16 values which magnitude it has; for float32 values one more pass counts the lower 16 bits
of what fell into that bin: radix selection, exact and O(n).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from personality.manifests.canonical import digest
from personality.manifests.digest_cache import remembered
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.magnitudes import Magnitudes, magnitude_bits, magnitudes_of
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import row_blocks

_LOWER_BINS = 1 << 16
_BLOCK_ELEMENTS = 1 << 18


class Thresholds:
    """The trimming thresholds of one vector; its histograms are read when the first is asked for.

    Args:
        vector: whose.
        names: the base tensors in which it acts.
        cache: file that remembers what a pass over the vector was needed for; None for none.
    """

    def __init__(self, vector: TaskVector, names: Sequence[str], cache: Path | None) -> None:
        self._vector = vector
        self._names = names
        self._cache = cache
        self._magnitudes: Magnitudes | None = None
        self._whole: dict[float, float] = {}

    def of_vector(self, density: float) -> float:
        """The magnitude from which elements are kept, so that `density` of all tensors together are (the paper's)."""
        if density not in self._whole:
            self._whole[density] = self._find(self._names, density, self._cache)
        return self._whole[density]

    def of_tensor(self, name: str, density: float) -> float:
        """The same of one tensor by itself (mergekit's)."""
        return self._find([name], density, None)

    def _find(self, names: Sequence[str], density: float, cache: Path | None) -> float:
        elements = sum(math.prod(self._vector.shapes[name]) for name in names)
        if density == 1 or elements == 0:
            return 0.0
        if self._magnitudes is None:
            self._magnitudes = magnitudes_of(self._vector)
        keep = max(1, int(density * elements))
        bin_, above = find_bin(self._magnitudes.histogram(names), keep)
        if self._magnitudes.exact(names):
            return magnitude(bin_)

        def refine() -> str:
            return lowest_kept(self._blocks(names), bin_, keep - above).hex()

        purpose = f"trimming threshold of {keep} in {digest(list(names))}"
        return float.fromhex(remembered(cache, purpose, [self._vector.path], refine))

    def _blocks(self, names: Iterable[str]) -> Iterable[Tensor]:
        for name in names:
            for start, stop in row_blocks(TensorSpec(name, "F32", self._vector.shapes[name]), _BLOCK_ELEMENTS):
                yield self._vector.rows(name, start, stop)


def find_bin(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that the k-th largest falls into, and how many lie in the bins above it.

    Raises:
        ValueError: when there are fewer than k elements.
    """
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, torch.tensor(k)).item())
    if position >= len(histogram):
        raise ValueError(f"there are only {int(from_top[-1])} elements, not {k}")
    above = int(from_top[position] - histogram[len(histogram) - 1 - position])
    return len(histogram) - 1 - position, above


def lowest_kept(blocks: Iterable[Tensor], bin_: int, rank: int) -> float:
    """The magnitude of the element of a bin that is the `rank`-th largest in it (from 1), by one pass over all."""
    lower = torch.zeros(_LOWER_BINS, dtype=torch.int64)
    for block in blocks:
        bits, low = magnitude_bits(block)
        inside = bits == bin_
        lower += torch.bincount(low[inside] if low is not None else bits[inside] * 0, minlength=_LOWER_BINS)
    return magnitude(bin_, find_bin(lower, rank)[0])


def magnitude(bin_: int, low: int = 0) -> float:
    """The float32 magnitude with these upper and lower 16 bits."""
    return float(torch.tensor([(bin_ << 16) | low], dtype=torch.int32).view(torch.float32).item())
