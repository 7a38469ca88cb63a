"""One pure function per composition method, on one block of one tensor; see docs/composition.md.

Everything is elementwise in the compute dtype (float32, or float64 for a float64 base), with one rounding at the end,
and multiplication and addition are never fused, so that a block's place in the tensor cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def linear(deltas: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
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


def trim(delta: Tensor, threshold: float) -> Tensor:
    """Keep elements whose magnitude reaches the threshold, set the others to 0 (TIES step 1)."""
    return torch.where(delta.abs() >= threshold, delta, torch.zeros_like(delta))


def ties(trimmed: Sequence[Tensor], scales: Sequence[float], normalize: str, lam: float) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708, steps 2 and 3) on trimmed vectors.

    With x_i = s_i · trim(τ_i), γ = sign(Σ x_i) and A = {i : sign(x_i) = γ, x_i ≠ 0}, Δ = λ · Σ_A x_i / n.

    Args:
        trimmed: trim(τ_i), equal shapes, compute dtype, in order of vector id.
        scales: s_i, one for each.
        normalize: n is 1 for `sum`, |A| for `mean` (the paper's), Σ_A |s_i| for `weighted`.
        lam: λ.

    Returns:
        Δ, the same shape and dtype; 0 where the signs cancel exactly.
    """
    scaled = [delta * scale for delta, scale in zip(trimmed, scales, strict=True)]
    elected = scaled[0].clone()
    for x in scaled[1:]:
        elected += x
    elected.sign_()
    total = torch.zeros_like(elected)
    divisor = torch.zeros_like(elected)
    for x, scale in zip(scaled, scales, strict=True):
        agrees = (x.sign() == elected) & (x != 0)
        total += torch.where(agrees, x, torch.zeros_like(x))
        if normalize == "mean":
            divisor += agrees
        elif normalize == "weighted":
            divisor += agrees.to(divisor.dtype) * abs(scale)
    if normalize != "sum":
        total = torch.where(divisor > 0, total / divisor, total)
    return total if lam == 1 else total * lam


def add_to_base(base: Tensor, delta: Tensor) -> Tensor:
    """W_base + Δ with one rounding to the base's dtype.

    Where Δ is 0 the base's own bits are kept, the sign of a negative zero included.

    Args:
        base: any floating dtype.
        delta: compute dtype, the same shape.
    """
    rounded = (base.to(delta.dtype) + delta).to(base.dtype)
    return torch.where(delta == 0, base, rounded)
