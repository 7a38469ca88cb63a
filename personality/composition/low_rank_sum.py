"""The best approximation of a sum of products of thin matrices by one such product.

A sum of products is one product already, Σ B_i A_i = [B_1 B_2 …] [A_1; A_2; …], so its singular values are those of a
small core between two orthonormal factors, and Δ itself is never made. What the nearest product of a given rank is, and
loses, is said in personality/vectors/truncation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from personality.vectors.truncation import Truncated


def truncate_sum(products: Sequence[tuple[Tensor, Tensor]], rank: int) -> Truncated:
    """The nearest product of a given rank to a sum of products, found in the space of the factors, in float64.

    With QR of both stacked factors, B = Q₁ R₁ and Aᵀ = Q₂ R₂, the sum is Q₁ (R₁ R₂ᵀ) Q₂ᵀ; its core R₁ R₂ᵀ has no more
    rows and columns than the ranks add up to.

    Args:
        products: left (rows, rank_i) and right (rank_i, columns) of each.
        rank: to keep at most.
    """
    left = torch.cat([pair[0] for pair in products], dim=1).double()
    right = torch.cat([pair[1] for pair in products], dim=0).double()
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, singular, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    kept = min(rank, len(singular))
    root = singular[:kept].sqrt()
    return Truncated(
        b=(q_left @ u[:, :kept] * root).float(),
        a=(root[:, None] * (vh[:kept] @ q_right.T)).float(),
        norm=float(singular.norm()),
        lost=float(singular[kept:].norm()),
    )
