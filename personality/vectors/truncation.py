"""The best approximation of a matrix by a product of two thin ones.

A product B A of rank r is nearest to Δ in the Frobenius norm when it keeps the r largest singular values (Eckart &
Young 1936); what is lost is the root of the squares of the others.
"""

from __future__ import annotations

import math
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
