"""How the weights of two versions differ, layer by layer, streamed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from personality.composition.composer import Composer
from personality.vectors.layers import layer_of

_BLOCK_ELEMENTS = 1 << 22
"""Elements in float64 at a time."""


@dataclass
class LayerDiff:
    """One layer's change from the base in two versions, and how the two changes relate.

    Attributes:
        layer: its number; None for what lies outside the layers (embeddings, final norm, output head).
        elements: elements that either version touches.
        norm_before, norm_after: Euclidean norm of Δ in each version.
        norm_change: norm of Δ_after − Δ_before: what changed between them.
        cosine: of Δ_before and Δ_after; None when either is zero.
        sign_flips: share of elements, nonzero in both, whose sign differs; None when there are none.
    """

    layer: int | None
    elements: int = 0
    norm_before: float = 0.0
    norm_after: float = 0.0
    norm_change: float = 0.0
    cosine: float | None = None
    sign_flips: float | None = None


@dataclass
class _Sums:
    """Float64 sums over one layer's tensors."""

    elements: int = 0
    before: float = 0.0
    after: float = 0.0
    change: float = 0.0
    dot: float = 0.0
    flips: int = 0
    both: int = 0

    def add(self, old: Tensor, new: Tensor) -> None:
        """Add a block of the two changes, float64, equal shapes."""
        self.elements += old.numel()
        self.before += float((old * old).sum())
        self.after += float((new * new).sum())
        self.change += float(((new - old) ** 2).sum())
        self.dot += float((old * new).sum())
        both = (old != 0) & (new != 0)
        self.both += int(both.sum())
        self.flips += int((both & (old.sign() != new.sign())).sum())

    def finish(self, layer: int | None) -> LayerDiff:
        nonzero = self.before > 0 and self.after > 0
        return LayerDiff(
            layer=layer,
            elements=self.elements,
            norm_before=math.sqrt(self.before),
            norm_after=math.sqrt(self.after),
            norm_change=math.sqrt(self.change),
            cosine=max(-1.0, min(1.0, self.dot / math.sqrt(self.before * self.after))) if nonzero else None,
            sign_flips=self.flips / self.both if self.both else None,
        )


def weight_diff(before: Composer, after: Composer) -> list[LayerDiff]:
    """Per layer, in order, layers that neither version touches left out; everything outside layers comes last.

    The differences are taken before rounding to the base's dtype, so that they show the recipe and not its rounding.

    Args:
        before, after: composers on the same base.
    """
    sums: dict[int | None, _Sums] = {}
    touched = set(before.touched) | set(after.touched)
    for name in (name for name in before.base.specs if name in touched):
        first, second = before.delta(name).reshape(-1), after.delta(name).reshape(-1)
        entry = sums.setdefault(layer_of(name), _Sums())
        for start in range(0, first.numel(), _BLOCK_ELEMENTS):
            entry.add(first[start : start + _BLOCK_ELEMENTS].double(), second[start : start + _BLOCK_ELEMENTS].double())
    order = sorted(sums, key=lambda layer: (layer is None, layer or 0))
    return [sums[layer].finish(layer) for layer in order]
