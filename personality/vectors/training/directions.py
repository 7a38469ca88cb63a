"""Directions in weight space: from a stored vector, denoised, or random for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.vectors.checkpoint import listing
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import matrix_shape

_EXACT_SVD = 1024
_OVERSAMPLING = 16
_POWER_ITERATIONS = 8


@dataclass(frozen=True)
class Directions:
    """The part of a vector that lies in the weights that are trained.

    Attributes:
        tensors: float32, of the weight's shape, by its name.
        left_out: names of the vector's other tensors.
        notes: in words, what was left out and why; empty when nothing was.
    """

    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def directions_of(vector: TaskVector, shapes: Mapping[str, tuple[int, ...]]) -> Directions:
    """A vector as dense directions of the weights that are trained.

    Names and shapes must be equal. A model may hold in one packed parameter what its checkpoint keeps apart (experts
    of some architectures); such tensors have no counterpart and are left out, like those that are not trained.

    Args:
        vector: an open task vector of any encoding.
        shapes: of the trained weights by name (`trained_weights`).

    Returns:
        The directions and what was left out.

    Raises:
        IncompatibleError: no tensor in common, or those in common are all zero.
    """
    common = [name for name, shape in vector.shapes.items() if shapes.get(name) == shape]
    left_out = tuple(sorted(set(vector.shapes) - set(common)))
    tensors = {}
    for name in common:
        shape = vector.shapes[name]
        # A copy: what `rows` gives may be memory-mapped, and is read at every step from now on.
        tensors[name] = vector.rows(name, 0, matrix_shape(shape)[0]).reshape(shape).to(torch.float32, copy=True)
    if not any(bool(tensor.any()) for tensor in tensors.values()):
        raise IncompatibleError(
            f"the vector to avoid changes {listing(list(vector.shapes))}, and nothing in the {len(shapes)} that are "
            "trained here: there is no direction to avoid",
            "train what it changes too (`--only`, `--layers`, `--train-norms`…), or leave out `--avoid`",
        )
    note = f"{len(left_out)} of {len(vector.shapes)} tensors are not trained here and were left out"
    notes = (note,) if left_out else ()
    return Directions(tensors, left_out, notes)


def random_directions(directions: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random directions of the same norms: the placebo against which an avoided direction is judged.

    Args:
        directions: float32, any shapes.
        seed: of the draw, which depends on names and shapes and not on the order.

    Returns:
        For each name an isotropic Gaussian direction scaled to the norm of the given one, on its device.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in sorted(directions):
        given = directions[name]
        drawn = torch.randn(given.shape, generator=generator)
        norm = torch.linalg.vector_norm(given).cpu()
        found[name] = (drawn * (norm / torch.linalg.vector_norm(drawn).clamp_min(1e-30))).to(given.device)
    return found


def denoise(direction: Tensor, weight: Tensor, top: int = 16) -> Tensor:
    """The part of a direction within the span of a weight's strongest singular vectors.

    D' = U_m U_m^T D V_m V_m^T with the m = `top` first singular vectors of W = U S V^T. Singular vectors of matrices
    with more than 1,024 rows and columns come from a randomized SVD with 8 power iterations (Halko et al. 2011, arXiv
    0909.4061, algorithm 4.4), seeded, so the same arguments give the same result.

    Args:
        direction: D, (rows, columns), or a stack of matrices (..., rows, columns), each treated alone. What has no
            matrix form (0-D and 1-D) has no singular vectors and is returned unchanged.
        weight: W, of the base, of D's shape.
        top: m, at least 1; clamped to the smaller dimension.

    Returns:
        D', float32, of D's shape.

    Raises:
        IncompatibleError: the shapes differ.
    """
    if direction.shape != weight.shape:
        raise IncompatibleError(
            f"a direction of the shape {list(direction.shape)} for a weight of the shape {list(weight.shape)}",
            "the vector to avoid must be of this base",
        )
    direction = direction.float()
    if direction.ndim < 2:
        return direction
    left, right = _top_singular_vectors(weight.to(direction.device).float(), top)
    return left @ (left.mT @ direction @ right) @ right.mT


def _top_singular_vectors(weight: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """U (..., rows, m) and V (..., columns, m)."""
    smaller = min(weight.shape[-2:])
    count = min(top, smaller)
    if smaller <= _EXACT_SVD:
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        return left[..., :count], right.mT[..., :count]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        left, _, right = torch.svd_lowrank(weight, q=min(count + _OVERSAMPLING, smaller), niter=_POWER_ITERATIONS)
    return left[..., :count], right[..., :count]
