"""The magnitude at which TIES trims: the k-th largest of a vector that is never held whole, and never sorted.

Positive IEEE floats order like their bit patterns. The histogram of their upper 16 bits says in which bin the k-th
largest lies; where it does not say more (see `magnitudes`), one more pass counts the lower 16 bits of what fell into
that bin: radix selection, exact and O(n).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from personality.manifests.canonical import digest
from personality.manifests.digest_cache import remembered
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.kept_magnitudes import magnitudes_of
from personality.vectors.magnitude_counter import magnitude_bits
from personality.vectors.magnitudes import Magnitudes, find_from_top
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import row_blocks

_BLOCK_ELEMENTS = 1 << 18


class Thresholds:
    """The trimming thresholds of one vector; its histograms are read when the first is asked for.

    Args:
        vector: whose.
        names: the base tensors in which it acts.
        cache: file that remembers what a pass over the vector was needed for; None for none.
        magnitudes: those of a vector that is not stored yet.
    """

    def __init__(
        self, vector: TaskVector, names: Sequence[str], cache: Path | None, magnitudes: Magnitudes | None = None
    ) -> None:
        self._vector = vector
        self._names = names
        self._cache = cache
        self._magnitudes = magnitudes
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
        place = self._magnitudes.kth_largest(names, keep)
        if place.exact:
            return magnitude(place.pattern)

        def look_closer() -> str:
            return magnitude(kth_in_bin(self._blocks(names), place.pattern, keep - place.above)).hex()

        purpose = f"trimming threshold of {keep} in {digest(list(names))}"
        return float.fromhex(remembered(cache, purpose, [self._vector.path], look_closer))

    def _blocks(self, names: Iterable[str]) -> Iterable[Tensor]:
        for name in names:
            for start, stop in row_blocks(TensorSpec(name, "F32", self._vector.shapes[name]), _BLOCK_ELEMENTS):
                yield self._vector.rows(name, start, stop)


def kth_in_bin(blocks: Iterable[Tensor], pattern: int, k: int) -> int:
    """The k-th largest of the float32 patterns that have the upper 16 bits of a pattern, by one pass over all.

    Args:
        blocks: of the vector, any float dtype and shape.
        pattern: the bin's lowest.
        k: from 1 to the number of elements in the bin.
    """
    lower = np.zeros(1 << 16, dtype=np.int64)
    for block in blocks:
        upper, bits = magnitude_bits(block)
        inside = upper == pattern >> 16
        if bits is None:
            lower[0] += int(inside.sum())
        else:
            lower += torch.bincount(bits[inside] & 0xFFFF, minlength=len(lower)).numpy()
    return pattern | find_from_top(lower, k)[0]


def magnitude(pattern: int) -> float:
    """The float32 number with these bits."""
    return float(np.array([pattern], dtype=np.int32).view(np.float32)[0])
