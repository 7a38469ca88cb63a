"""Sums over the elements of a recipe's parts, from which every figure of a forecast comes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from personality.forecast.parts import TensorParts
from personality.vectors.layers import layer_of

_BLOCK_ELEMENTS = 1 << 20
"""Elements of each use in float64 at a time."""

Floats = NDArray[np.float64]


@dataclass
class PartSums:
    """Sums over the elements of some tensors, for n uses with x_i = s_i τ_i and t_i = s_i trim(τ_i); float64.

    Attributes:
        gram: (n, n) ⟨x_i, x_j⟩.
        trimmed: (n, n) ⟨t_i, t_j⟩.
        whole_count: (n,) elements that x_i changes.
        both: (n, n) elements that t_i and t_j both change; on the diagonal, those that t_i changes.
        opposed: (n, n) those of them where the signs differ.
        magnitude: (n,) Σ |t_i|.
        lost: (n, n) Σ min(|t_i|, |t_j|) where the signs differ.
        surviving: (n,) elements of t_i that have the elected sign.
        surviving_square: (n,) Σ x_i² over those.
        along: (n,) ⟨Δ, x_i⟩.
        delta: ‖Δ‖².
        base: ‖W_base‖² of the same tensors.
    """

    gram: Floats
    trimmed: Floats
    whole_count: Floats
    both: Floats
    opposed: Floats
    magnitude: Floats
    lost: Floats
    surviving: Floats
    surviving_square: Floats
    along: Floats
    delta: float = 0.0
    base: float = 0.0

    @classmethod
    def zeros(cls, count: int) -> PartSums:
        """Nothing added up yet, for so many uses."""
        square, line = np.zeros((count, count)), np.zeros(count)
        return cls(square, square, line, square, square, line, square, line, line, line)  # never changed in place

    def __add__(self, other: PartSums) -> PartSums:
        return PartSums(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def layer_sums(parts: Iterable[TensorParts], count: int) -> dict[int | None, PartSums]:
    """Sums by layer, in order; None, for what lies outside the layers, comes last.

    Args:
        parts: of a recipe.
        count: of its uses.
    """
    found: dict[int | None, PartSums] = {}
    for tensor in parts:
        layer = layer_of(tensor.name)
        for start in range(0, tensor.delta.numel(), _BLOCK_ELEMENTS):
            block = _block(tensor, slice(start, start + _BLOCK_ELEMENTS))
            found[layer] = found.get(layer, PartSums.zeros(count)) + block
    return {layer: found[layer] for layer in sorted(found, key=lambda layer: (layer is None, layer or 0))}


def _block(tensor: TensorParts, here: slice) -> PartSums:
    whole = torch.stack([item[here].double() for item in tensor.whole])  # (n, c)
    trimmed = torch.stack([item[here].double() for item in tensor.trimmed])
    delta, base = tensor.delta[here].double(), tensor.base[here].double()
    signs, kept = trimmed.sign(), (trimmed != 0).double()
    both = kept @ kept.T
    survives = (signs == tensor.elected[here].double().sign()) & (trimmed != 0)
    size = trimmed.abs()
    # |a| + |b| − |a + b| is 2 min(|a|, |b|) where the signs differ, and 0 elsewhere.
    lost = torch.stack([(size + size[i] - (trimmed + trimmed[i]).abs()).sum(1) / 2 for i in range(len(size))])
    return PartSums(
        gram=(whole @ whole.T).numpy(),
        trimmed=(trimmed @ trimmed.T).numpy(),
        whole_count=(whole != 0).double().sum(1).numpy(),
        both=both.numpy(),
        opposed=((both - signs @ signs.T) / 2).numpy(),
        magnitude=size.sum(1).numpy(),
        lost=lost.numpy(),
        surviving=survives.double().sum(1).numpy(),
        surviving_square=(whole.square() * survives).sum(1).numpy(),
        along=(whole @ delta).numpy(),
        delta=float(delta @ delta),
        base=float(base @ base),
    )
