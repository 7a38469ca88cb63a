"""One pure function per composition method, on one block of one tensor; see docs/composition.md.

Everything is elementwise in the compute dtype (float32, or float64 for a float64 base), with one rounding at the end,
and multiplication and addition are never fused, so that neither a block's place in the tensor nor a compiler can change
a bit. Scales, limits and λ may be numbers or 0-D tensors: a compiled kernel takes them as data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from personality.manifests.personality_record import Composition

Number = float | Tensor
"""A number, or a 0-D tensor of the compute dtype."""


@dataclass(frozen=True)
class Formula:
    """What a block function is made for, apart from the numbers.

    Attributes:
        method: `linear` or `ties`.
        normalize: what TIES divides by, see `ties`; `linear` passes it over.
    """

    method: Literal["linear", "ties"]
    normalize: str = "sum"

    @classmethod
    def of(cls, composition: Composition) -> Formula:
        """The formula of a recipe's composition."""
        return cls("ties", composition.normalize) if composition.method == "ties" else cls("linear")


def compose(
    formula: Formula,
    base: Tensor,
    deltas: Sequence[Tensor],
    scales: Sequence[Number],
    limits: Sequence[Number],
    lam: Number,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """A block of the composed weights.

    Args:
        formula: the method.
        base: W_base, any floating dtype.
        deltas: τ_i, equal shapes, any floating dtypes, in order of vector id.
        scales, limits: s_i and the trimming threshold of each.
        lam: λ of TIES.
        dtype: the compute dtype.

    Returns:
        W in the base's dtype and shape, and the sum of its elements, 0-D float32: finite only if no element is
        infinite or NaN (though many large ones can overflow it).
    """
    composed = add_to_base(base, change(formula, deltas, scales, limits, lam, dtype))
    return composed, composed.sum(dtype=torch.float32)


def change(
    formula: Formula,
    deltas: Sequence[Tensor],
    scales: Sequence[Number],
    limits: Sequence[Number],
    lam: Number,
    dtype: torch.dtype,
) -> Tensor:
    """Δ of a block in the compute dtype; arguments as for `compose`."""
    if formula.method == "linear":
        return linear([delta.to(dtype) for delta in deltas], scales)
    kept = [trim(delta.to(dtype), limit) for delta, limit in zip(deltas, limits, strict=True)]
    return ties(kept, scales, formula.normalize, lam)


def linear(deltas: Sequence[Tensor], scales: Sequence[Number]) -> Tensor:
    """Task arithmetic (Ilharco et al. 2022, arXiv 2212.04089): Δ = Σ s_i τ_i.

    Args:
        deltas: τ_i, equal shapes, compute dtype, in order of vector id.
        scales: s_i, one for each.

    Returns:
        Δ, the same shape and dtype.
    """
    total = deltas[0] * scales[0]
    for delta, scale in zip(deltas[1:], scales[1:], strict=True):
        total += delta * scale
    return total


def trim(delta: Tensor, limit: Number) -> Tensor:
    """Keep elements whose magnitude, as float32, reaches the limit, set the others to 0 (TIES step 1)."""
    # Not `where`, which takes thirty times as long as a multiplication does on a processor without a compiler.
    return delta * (delta.float().abs() >= limit)


def ties(trimmed: Sequence[Tensor], scales: Sequence[Number], normalize: str, lam: Number) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708, steps 2 and 3) on trimmed vectors.

    With x_i = s_i · trim(τ_i), γ = sign(Σ x_i) and A = {i : sign(x_i) = γ, x_i ≠ 0}, Δ = λ · Σ_A x_i / n. Both possible
    sums, of what is positive and of what is negative, are made on the way, and γ picks one.

    Args:
        trimmed: trim(τ_i), equal shapes, compute dtype, in order of vector id.
        scales: s_i, one for each.
        normalize: n is 1 for `sum`, |A| for `mean` (the paper's), Σ_A |s_i| for `weighted`.
        lam: λ.

    Returns:
        Δ, the same shape and dtype; 0 where the signs cancel exactly.
    """
    scaled = [delta * scale for delta, scale in zip(trimmed, scales, strict=True)]
    total = scaled[0].clone()
    up, down = scaled[0].clamp_min(0.0), scaled[0].clamp_max(0.0)
    for x in scaled[1:]:
        total += x
        up += x.clamp_min(0.0)
        down += x.clamp_max(0.0)
    if normalize != "sum":
        parts = [cast("Number", 1.0 if normalize == "mean" else abs(scale)) for scale in scales]
        signs = [x.sign() for x in scaled]
        up /= _weight([sign.clamp_min(0.0) for sign in signs], parts)
        down /= _weight([sign.clamp_max(0.0).abs() for sign in signs], parts)
    elected = total.sign_()
    return (up * elected.clamp_min(0.0) - down * elected.clamp_max(0.0)) * lam


def _weight(agreeing: Sequence[Tensor], parts: Sequence[Number]) -> Tensor:
    """Sum of the parts of those that agree (1, else 0), per element; 1 where nobody does."""
    total = agreeing[0] * parts[0]
    for agrees, part in zip(agreeing[1:], parts[1:], strict=True):
        total += agrees * part
    return total + (total == 0)


def add_to_base(base: Tensor, delta: Tensor) -> Tensor:
    """W_base + Δ with one rounding to the base's dtype.

    Where Δ is 0 the base's own bits are kept, the sign of a negative zero included.

    Args:
        base: any floating dtype.
        delta: compute dtype, the same shape.
    """
    # 0 − Δ is +0 where Δ is either zero, and subtracting +0 changes nothing, not even -0.
    return (base.to(delta.dtype) - (0.0 - delta)).to(base.dtype)
