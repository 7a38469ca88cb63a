"""The leading principal components of rows that pass by once."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

RANK: Final = 64
"""Components kept by default."""

# Smaller eigenvalues, relative to the largest, are the rounding of float32 rows.
_NOISE = 1e-14


class PrincipalSketch:
    """Mean and leading components of any number of rows, in memory for 2k rows of width d.

    Incremental PCA with a running mean (Ross et al. 2008, "Incremental Learning for Robust Visual Tracking", section
    3.1): every k new rows, centered, are put below the k components kept so far (each as long as its singular value)
    with one row for the shift of the mean, and the leading k components of these are kept. Exact up to rounding while
    there are at most k + 1 rows. After that what is kept is a lower bound of the rows' scatter matrix, by a margin
    that is known: 0 ⪯ S − BᵀB ⪯ `lost` · I.

    Args:
        width: d.
        rank: k, at least 1.
    """

    def __init__(self, width: int, rank: int = RANK) -> None:
        self.rank = rank
        self.count = 0
        self.lost = 0.0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._components = torch.zeros(0, width)  # B, float32: it is the largest part
        self._pending: list[Tensor] = []
        self._waiting = 0

    def add(self, rows: Tensor) -> None:
        """Take in rows; how they are cut into calls changes nothing.

        Args:
            rows: (c, d), finite.
        """
        rows = rows.to(torch.float32)
        while len(rows):
            part, rows = rows[: self.rank - self._waiting], rows[self.rank - self._waiting :]
            self._pending.append(part.clone())
            self._waiting += len(part)
            if self._waiting == self.rank:
                self._fold()

    def mean(self) -> Tensor:
        """Mean of the rows, float64 (d,)."""
        self._fold()
        return self._mean

    def principal(self, *, centered: bool) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the rows' second moments, largest first.

        Args:
            centered: about the mean (S = Σ(x−μ)(x−μ)ᵀ), or about zero (Σxxᵀ = S + nμμᵀ).

        Returns:
            Values float64 (r,) and orthonormal vectors float64 (r, d), r ≤ k + 1; directions without extent are left
            out. Signs are arbitrary.
        """
        self._fold()
        rows = self._components.double()
        if not centered:
            rows = torch.cat([rows, self.count**0.5 * self._mean[None]])
        values, vectors = _compress(rows, len(rows))
        return values, vectors / values.sqrt()[:, None]

    @property
    def kept_bytes(self) -> int:
        """Memory of what is kept now."""
        return sum(tensor.nbytes for tensor in (self._mean, self._components, *self._pending))

    def _fold(self) -> None:
        if not self._waiting:
            return
        fresh = torch.cat(self._pending).double()
        self._pending, self._waiting = [], 0
        c, n = len(fresh), self.count
        mean = fresh.mean(0)
        shift = (n * c / (n + c)) ** 0.5 * (self._mean - mean)
        rows = torch.cat([self._components.double(), fresh - mean, shift[None]])
        values, components = _compress(rows, self.rank + 1)
        if len(values) > self.rank:
            self.lost += float(values[self.rank])
        self._components = components[: self.rank].float()
        self._mean = (n * self._mean + c * mean) / (n + c)
        self.count = n + c


def _compress(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The leading eigenvalues of RᵀR for few long rows R (r, d), and its eigenvectors times their singular values.

    Through the Gram matrix of the rows, which is small: RRᵀ = U Λ Uᵀ, and UᵀR are the wanted vectors.
    """
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values, vectors = values.flip(0)[:most], vectors.flip(1)[:, :most]
    kept = values > _NOISE * values[:1].clamp_min(0)
    return values[kept], vectors[:, kept].T @ rows
