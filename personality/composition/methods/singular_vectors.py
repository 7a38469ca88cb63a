"""Methods on singular vectors, which mergekit lacks: TSV-Merge and Iso-C.

A 2-D tensor is a matrix; a 3-D tensor whose last two sizes exceed 1 is a stack of them (experts fused into one tensor).
Everything else is averaged, as the authors of both papers do. Decompositions run in float64, one matrix at a time.
Singular values below `_NEGLIGIBLE` of the largest are rounding of the inputs, whose singular vectors are arbitrary:
they take no part. A vector of rank 16 thus brings 16 directions and not those that LAPACK completes the basis with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from personality.composition.methods.operand import Operand
from personality.manifests.errors import FallenApartError
from personality.manifests.personality_record import Composition

_NEGLIGIBLE: Final = 8.0  # in units of the compute dtype's eps


def tsv_merge(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """TSV-Merge (Gargiulo et al. 2024, arXiv 2412.00081, section on TSV-Merge; k and non-matrices as in their code).

    With s_i τ_i = U_i Σ_i V_iᵀ cut to its k = ⌊min(rows, columns) / T⌋ leading terms, U = [U_1 | … | U_T] and V alike,
    Δ = λ · U⊥ Σ V⊥ᵀ, where U⊥ = P Qᵀ of U = P D Qᵀ solves min ‖U⊥ − U‖_F with orthonormal columns (orthogonal
    Procrustes). T is the number of vectors that change the tensor. One alone is s τ.

    Args:
        composition: its `lambda` is the paper's α.
        name: of the tensor.
        base: W; only its shape is used.
        operands: in order of vector id.

    Returns:
        Δ, the base's shape, compute dtype.
    """
    changes = _finite(name, operands)
    lam: float = composition.parameters["lambda"]
    if len(changes) == 1:
        return changes[0] * lam
    return _by_matrix(changes, _tsv) * lam


def iso_c(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """Iso-C (Marczak et al. 2025, arXiv 2502.04959, algorithm 1): all singular values become their mean.

    With Σ_i s_i τ_i = U Σ Vᵀ of rank r, Δ = λ · σ̄ U Vᵀ, σ̄ = Σ_j σ_j / r. Arguments and result as `tsv_merge`.
    """
    lam: float = composition.parameters["lambda"]
    return _by_matrix(_finite(name, operands), _isotropic) * lam


def _tsv(changes: Sequence[Tensor]) -> Tensor:
    keep = min(changes[0].shape) // len(changes)
    if not keep:
        return _mean(changes)
    # Copies, so that what is cut off does not stay in memory.
    parts = [tuple(factor[..., :keep].clone() for factor in _decomposed(change)) for change in changes]
    left = torch.cat([part[0] for part in parts], dim=1)
    values = torch.cat([part[1] for part in parts])
    right = torch.cat([part[2] for part in parts], dim=1)
    return (_orthogonal(left, changes[0].dtype) * values) @ _orthogonal(right, changes[0].dtype).T


def _isotropic(changes: Sequence[Tensor]) -> Tensor:
    left, values, right = _decomposed(torch.stack(list(changes)).sum(0))
    return left @ right.T * values.mean() if values.numel() else torch.zeros_like(changes[0])


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (rows, r), σ (r,) falling, V (columns, r), float64, r the rank beyond rounding."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = int((values > values.max() * _NEGLIGIBLE * torch.finfo(matrix.dtype).eps).sum()) if values.numel() else 0
    return left[:, :rank], values[:rank], right[:rank].T


def _orthogonal(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrix with orthonormal columns; directions that the columns do not span stay out."""
    left, values, right = torch.linalg.svd(vectors, full_matrices=False)
    rank = int((values > values.max() * _NEGLIGIBLE * torch.finfo(dtype).eps).sum()) if values.numel() else 0
    found: Tensor = left[:, :rank] @ right[:rank]
    return found


def _by_matrix(changes: Sequence[Tensor], merge: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """Merge matrix by matrix; what is none is averaged."""
    first = changes[0]
    if first.numel() == 0:
        return torch.zeros_like(first)
    if first.dim() == 2:
        return merge(changes).to(first.dtype)
    if first.dim() == 3 and min(first.shape[1:]) > 1:
        total = torch.empty_like(first)
        for index in range(first.shape[0]):
            total[index] = merge([change[index] for change in changes])
        return total
    return _mean(changes)


def _mean(changes: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(changes)).sum(0) / len(changes)


def _finite(name: str, operands: Sequence[Operand]) -> list[Tensor]:
    """s_i τ_i.

    Raises:
        FallenApartError: when one overflows, since nothing can be decomposed then.
    """
    changes = [operand.scaled for operand in operands]
    if not all(bool(torch.isfinite(change).all()) for change in changes):
        raise FallenApartError(f"the change of `{name}` overflows", "the scales are too large for these vectors")
    return changes


SINGULAR_METHODS: Final = {"tsv_merge": tsv_merge, "iso_c": iso_c}
