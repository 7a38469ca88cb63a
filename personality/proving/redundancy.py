"""How much of a direction other vectors have already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DEPENDENT = 1e-6  # relative to the largest singular value


def redundancy(direction: Tensor, others: Sequence[Tensor]) -> float | None:
    """R² of a direction on the span of others at the same layer: ‖projection of the unit direction‖².

    The least-squares fit without an intercept. k random directions of width d give k/d, so with d ≫ k nothing has to be
    subtracted for chance.

    Args:
        direction: (d,).
        others: each (d,); those of length 0 are left out.

    Returns:
        Between 0 and 1; None without a direction or without others.
    """
    kept = [other.double() / other.double().norm() for other in others if bool(other.any())]
    if not kept or not bool(direction.any()):
        return None
    unit = direction.double() / direction.double().norm()
    basis, values, _ = torch.linalg.svd(torch.stack(kept, dim=1), full_matrices=False)
    basis = basis[:, values > values[0] * _DEPENDENT]  # the same direction twice spans no more than once
    return min(1.0, float((basis.T @ unit).square().sum()))
