"""The k-th largest magnitude of a vector that is never held whole: radix selection on the bits of the floats.

Positive IEEE floats order like their bit patterns, so two histograms (upper 16 bits, then the lower 16 bits of what
fell into the right bin) give the exact value in O(n) without sorting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_BINS = 1 << 16
_LOW = _BINS - 1


def kth_largest_magnitude(blocks: Callable[[], Iterable[Tensor]], k: int) -> float:
    """The magnitude that the k-th largest element has.

    Args:
        blocks: gives the vector's blocks, float32 (or narrower), any shapes; called once or twice.
        k: from 1 to the number of elements.

    Returns:
        The exact float32 value; keeping all elements ≥ it keeps at least k (more when several equal it).

    Raises:
        ValueError: when there are fewer than k elements.
    """
    upper = torch.zeros(_BINS, dtype=torch.int64)
    has_low_bits = False
    for block in blocks():
        bits = _magnitude_bits(block)
        upper += torch.bincount(bits >> 16, minlength=_BINS)
        has_low_bits = has_low_bits or bool((bits & _LOW).any())
    bin_, above = _find(upper, k)
    low = 0
    if has_low_bits:
        lower = torch.zeros(_BINS, dtype=torch.int64)
        for block in blocks():
            bits = _magnitude_bits(block)
            lower += torch.bincount(bits[(bits >> 16) == bin_] & _LOW, minlength=_BINS)
        low, _ = _find(lower, k - above)
    return float(torch.tensor([(bin_ << 16) | low], dtype=torch.int32).view(torch.float32).item())


def _magnitude_bits(block: Tensor) -> Tensor:
    return block.detach().float().abs().reshape(-1).view(torch.int32)


def _find(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that the k-th largest falls into, and how many lie in the bins above it."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, torch.tensor(k)).item())
    if position >= len(histogram):
        raise ValueError(f"there are only {int(from_top[-1])} elements, not {k}")
    above = int(from_top[position] - histogram[len(histogram) - 1 - position])
    return len(histogram) - 1 - position, above
