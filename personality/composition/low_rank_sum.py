"""The best approximation of a change of weights by a product of two thin matrices.

A product B A of rank r is nearest to Δ in the Frobenius norm when it keeps the r largest singular values (Eckart &
Young 1936); what is lost is the root of the squares of the others. A sum of products is one product already,
Σ B_i A_i = [B_1 B_2 …] [A_1; A_2; …], so its singular values are those of a small core between two orthonormal factors,
and Δ itself is never made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_SIZE = 1024
"""The smaller side up to which a dense matrix gets an exact decomposition."""
_OVERSAMPLING = 16
_POWER_ITERATIONS = 6
_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Truncated:
    """Δ ≈ B A, the singular values shared evenly between the two factors: B = U √Σ, A = √Σ Vᵀ.

    Attributes:
        b: (rows, rank), float32.
        a: (rank, columns), float32.
        norm: Frobenius norm of Δ.
        lost: Frobenius norm of Δ − B A.
    """

    b: Tensor
    a: Tensor
    norm: float
    lost: float

    @property
    def rank(self) -> int:
        """Columns of B, rows of A."""
        return int(self.b.shape[1])


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


def truncate_matrix(delta: Tensor, rank: int) -> Truncated:
    """The nearest product of a given rank to a dense matrix.

    Exact up to `EXACT_SIZE`; beyond, by randomized subspace iteration (Halko, Martinsson & Tropp 2011, arXiv 0909.4061,
    algorithms 4.4 and 5.1) with a fixed seed, which comes near the optimum. What is lost is measured on the product
    itself, so it is never stated too small.

    Args:
        delta: (rows, columns), float32 or float64.
        rank: to keep at most.
    """
    smaller = min(delta.shape)
    kept = min(rank, smaller)
    if smaller <= EXACT_SIZE or kept + _OVERSAMPLING >= smaller // 2:
        u, singular, vh = torch.linalg.svd(delta, full_matrices=False)
        v = vh.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, singular, v = torch.svd_lowrank(delta, q=kept + _OVERSAMPLING, niter=_POWER_ITERATIONS)
    root = singular[:kept].sqrt()
    b, a = (u[:, :kept] * root).float(), (v[:, :kept] * root).T.contiguous().float()
    squares = lost = 0.0
    step = max(1, _BLOCK_ELEMENTS // max(1, delta.shape[1]))
    for start in range(0, delta.shape[0], step):
        block = delta[start : start + step].double()
        squares += float((block**2).sum())
        lost += float(((block - b[start : start + step].double() @ a.double()) ** 2).sum())
    return Truncated(b, a, math.sqrt(squares), math.sqrt(lost))
