"""Estimates with 95% intervals. Nothing here is random: resampling starts from a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from personality.manifests.evaluation import Figure

_Z = 1.959963984540054
_RESAMPLES = 2000
_CLUSTER_RESAMPLES = 500


def share(outcomes: Sequence[bool]) -> Figure:
    """A share of yes/no outcomes with Wilson's score interval (Wilson 1927), which holds near 0 and 1 too."""
    n = len(outcomes)
    p = sum(outcomes) / n
    center = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Figure(value=p, low=min(p, max(0.0, center - half)), high=max(p, min(1.0, center + half)), n=n)


def mean(values: Sequence[float]) -> Figure:
    """A mean with a percentile bootstrap interval (Efron 1979), expanded for small samples (Hesterberg 2015)."""
    array = np.asarray(values, dtype=np.float64)
    low, high = _bootstrap(array)
    value = float(array.mean())
    return Figure(value=value, low=min(low, value), high=max(high, value), n=len(array))


def paired_share_difference(before: Sequence[bool], after: Sequence[bool]) -> Figure:
    """Share after − share before over the same rows, with Newcombe's square-and-add interval for paired shares
    (Newcombe 1998, Statistics in Medicine 17:2635, method 10).

    Unlike a bootstrap it keeps a width when every row agrees: forty equal rows do not prove equality.

    Raises:
        ValueError: when the two have different lengths.
    """
    _check_paired(before, after)
    old, new = share(before), share(after)
    phi = _phi(before, after)
    # Each limit combines the distances from both shares to their own limits, corrected for the correlation φ.
    down = _combine(new.value - new.low, old.high - old.value, phi)
    up = _combine(new.high - new.value, old.value - old.low, phi)
    value = new.value - old.value
    return Figure(value=value, low=max(-1.0, value - down), high=min(1.0, value + up), n=len(before))


def _combine(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))


def _phi(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Correlation of two yes/no series, a positive one lowered by Newcombe's continuity correction (without it, equal
    rows would have φ = 1 and an interval of no width); 0 when one of them is constant.
    """
    both = sum(a and b for a, b in zip(before, after, strict=True))
    n, x, y = len(before), sum(before), sum(after)
    spread = x * (n - x) * y * (n - y)
    product = float(both * n - x * y)
    if product > 0:
        product = max(product - n / 2, 0.0)
    return product / math.sqrt(spread) if spread else 0.0


def _check_paired(before: Sequence[float], after: Sequence[float]) -> None:
    if len(before) != len(after):
        raise ValueError(f"paired figures need the same rows, got {len(before)} and {len(after)}")


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Figure:
    """Mean of after − before over the same rows, with a percentile bootstrap interval.

    Raises:
        ValueError: when the two have different lengths.
    """
    _check_paired(before, after)
    return mean([b - a for a, b in zip(before, after, strict=True)])


def clustered(rows: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float]) -> Figure:
    """A statistic of values that come in rows, with a percentile bootstrap interval that draws whole rows: values of
    one row are not independent (Cameron, Gelbach and Miller 2008, Review of Economics and Statistics 90:414).

    Args:
        rows: at least one, each with at least one value.
        statistic: of all values together.
    """
    arrays = [np.asarray(row, dtype=np.float64) for row in rows]
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(arrays), size=(_CLUSTER_RESAMPLES, len(arrays)))
    found = [statistic(np.concatenate([arrays[i] for i in pick])) for pick in picks]
    tail = _expanded_tail(len(arrays))
    low, high = np.percentile(found, [tail, 100 - tail])
    value = statistic(np.concatenate(arrays))
    return Figure(value=value, low=min(float(low), value), high=max(float(high), value), n=len(arrays))


def independent_sum(first: Figure, second: Figure, shift: float = 0.0) -> Figure:
    """The sum of two figures that rest on different rows, by square-and-add of their own intervals (Zou and Donner
    2008, Statistics in Medicine 27:1693): it keeps what is good about them near 0 and 1.

    Args:
        first, second: figures.
        shift: added to the sum.
    """
    value = first.value + second.value + shift
    low = math.hypot(first.value - first.low, second.value - second.low)
    high = math.hypot(first.high - first.value, second.high - second.value)
    return Figure(value=value, low=value - low, high=value + high, n=first.n + second.n)


def _bootstrap(array: np.ndarray) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(array), size=(_RESAMPLES, len(array)))
    tail = _expanded_tail(len(array))
    low, high = np.percentile(array[picks].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def _expanded_tail(n: int) -> float:
    """Percentile to read a bootstrap of n values at, so that small samples get intervals as wide as Student's.

    A bootstrap draws from a sample whose spread is too small by √((n − 1)/n) and knows no t: read at 2.5% it misses
    more often than one time in twenty. Hesterberg 2015 (The American Statistician 69:371) reads it at
    Φ(−√(n/(n − 1)) · t), with t the quantile of Student's distribution with n − 1 degrees of freedom.
    """
    if n < 2:
        return 2.5
    z, degrees = _Z, n - 1
    # Student's quantile from the normal one (Abramowitz and Stegun 1964, 26.7.5).
    t = z + (z**3 + z) / (4 * degrees)
    t += (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return 50 * math.erfc(math.sqrt(n / degrees) * t / math.sqrt(2))
