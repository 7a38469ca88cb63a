"""mergekit's own methods on one tensor: what they are given, and what a scale means to them.

Where a method looks at changes only, it is given a base of zeros and the vectors themselves: W + τ − W, rounded, is not
τ. Only `slerp`, `karcher` and `arcee_fusion` are given the weights, in float64: a change is a thousandth of a weight,
and float32 would leave it four digits. The formulas are in docs/composition.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from personality.composition.methods.operand import Operand
from personality.composition.methods.surroundings import drawing
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Composition
from personality.vectors.tensors import matrix_shape

_BLOCK_ELEMENTS: Final = 1 << 20  # a constant: the order of a sum may depend on a place's distance from the end
_SPARSIFIED_BY: Final = {"dare": "random", "della": "della_magprune", "breadcrumbs": "magnitude_outliers"}


def sparsifying(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """DARE, DELLA and Model Breadcrumbs: drop elements of each vector, then add or elect as TIES does.

    Args:
        composition: method, parameters and seed.
        name: of the tensor.
        base: W, base's dtype; only its shape is used.
        operands: in order of vector id.

    Returns:
        Δ, the base's shape, compute dtype.
    """
    settings = composition.parameters
    kept = [_sparse(composition, name, operand) for operand in operands]
    parameters = {
        "weight": [abs(operand.scale) for operand in operands],
        "density": 1.0,  # dropped already
        "rescale": False,
        "normalize": settings["normalize"] == "weighted",
        "lambda": settings["lambda"],
    }
    return _by_blocks(composition.method, name, kept, parameters).reshape(base.shape)


def _sparse(composition: Composition, name: str, operand: Operand) -> Tensor:
    """A vector's tensor, as (rows, columns), with its sign and what stays of its elements."""
    from mergekit.sparsify import RescaleNorm, SparsificationMethod, sparsify

    settings = composition.parameters
    rows, columns = matrix_shape(tuple(operand.delta.shape))
    # DELLA ranks within rows: a column of its own would have nothing to rank.
    delta = operand.signed.reshape((rows, columns) if columns > 1 else (1, rows))
    if delta.numel() == 1:  # a share of one element is nothing or all
        return delta
    method = SparsificationMethod(_SPARSIFIED_BY[composition.method.split("_")[0]])
    with drawing(composition.seed, name, operand.vector):
        kept: Tensor = sparsify(
            delta,
            density=settings["density"] if operand.density is None else operand.density,
            method=method,
            gamma=settings.get("gamma", 0.0),
            epsilon=settings.get("epsilon", 0.0),
            rescale_norm=RescaleNorm.l1 if settings["rescale"] else None,
        )
    return kept


def scaled(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """`sce`, `ram`, `ramplus_tl`, `model_stock`, `nearswap`: fine-tunes W + s τ, which the method weighs by itself."""
    changes = [_matrix(operand.scaled) for operand in operands]
    if composition.method in ("ram", "nearswap"):  # every element by itself
        return _by_blocks(composition.method, name, changes, composition.parameters).reshape(base.shape)
    return _merged(composition.method, name, None, changes, composition.parameters).reshape(base.shape)


def nuslerp(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """Between two vectors on the sphere, at the share of the second one's |scale|; times Σ |s| unless `weighted`."""
    settings = composition.parameters
    weights = [abs(operand.scale) for operand in operands]
    found = _merged(
        "nuslerp",
        name,
        None,
        [_matrix(operand.signed) for operand in operands],
        {
            "weight": weights,
            "nuslerp_flatten": settings["flatten"],
            "nuslerp_row_wise": settings["row_wise"],
        },
    )
    return (found * sum(weights) if settings["normalize"] == "sum" else found).reshape(base.shape)


def multislerp(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """The mean direction of the vectors, weighed by |scale|, at the sum (`weighted`: the mean) of their lengths."""
    return _merged(
        "multislerp",
        name,
        None,
        [operand.signed.reshape(-1) for operand in operands],
        {
            "weight": [abs(operand.scale) for operand in operands],
            "normalize_weights": composition.parameters["normalize"] == "weighted",
        },
    ).reshape(base.shape)


def slerp(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """From the base (t = 0) to the fine-tune (t = 1) on the sphere, at t = s; s τ where the base is all zeros."""
    (operand,) = operands
    weights = base.double()
    if not bool(weights.any()):  # no direction to turn from
        return operand.scaled
    turned = _merged("slerp", name, weights, [weights + operand.delta], {"t": operand.scale})
    return (turned - weights).to(operand.delta.dtype)


def karcher(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """The Karcher mean of the base, at weight 1 − Σ s, and the fine-tunes, each at weight s."""
    from mergekit.merge_methods.karcher import karcher_merge_tensors

    weights = base.double()
    scales = [operand.scale for operand in operands]
    found: Tensor = karcher_merge_tensors(
        [weights, *(weights + operand.delta for operand in operands)],
        [1.0 - sum(scales), *scales],
        max_iter=composition.parameters["max_iter"],
        tol=composition.parameters["tol"],
    )
    return (found - weights).to(operands[0].delta.dtype)


def arcee_fusion(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """S τ where it matters most; what matters is sampled in tensors of more than a million elements."""
    (operand,) = operands
    weights = _matrix(base.double())
    with drawing(composition.seed, name, operand.vector):
        found = _merged("arcee_fusion", name, weights, [weights + _matrix(operand.scaled)], {})
    return torch.where(found == weights, 0.0, _matrix(operand.scaled)).reshape(base.shape)


MERGEKIT_METHODS: Final[Mapping[str, Callable[[Composition, str, Tensor, Sequence[Operand]], Tensor]]] = {
    **dict.fromkeys(
        ("dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"), sparsifying
    ),
    **dict.fromkeys(("sce", "ram", "ramplus_tl", "model_stock", "nearswap"), scaled),
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "slerp": slerp,
    "karcher": karcher,
    "arcee_fusion": arcee_fusion,
}


def _matrix(tensor: Tensor) -> Tensor:
    """As (rows, columns) from two dimensions on, so that per-row methods see an expert's rows and not the experts."""
    return tensor.reshape(matrix_shape(tuple(tensor.shape))) if tensor.dim() > 1 else tensor.reshape(-1)


def _by_blocks(method: str, name: str, others: Sequence[Tensor], parameters: Mapping[str, Any]) -> Tensor:
    """What mergekit makes of a base of zeros and other tensors, element by element, in blocks that bound its copies."""
    flat = [other.reshape(-1) for other in others]
    total = torch.empty_like(flat[0])
    for start in range(0, total.numel(), _BLOCK_ELEMENTS):
        block = slice(start, start + _BLOCK_ELEMENTS)
        total[block] = _merged(method, name, None, [item[block] for item in flat], parameters)
    return total


def _merged(
    method: str, name: str, base: Tensor | None, others: Sequence[Tensor], parameters: Mapping[str, Any]
) -> Tensor:
    """What mergekit makes of a base (zeros where None) and other tensors of the same shape."""
    from mergekit.merge_methods.api import merge_tensors

    first = torch.zeros_like(others[0]) if base is None else base
    try:
        found: Tensor = merge_tensors([first, *others], method, parameters=parameters, base_index=0, name=name)
    except ValueError as error:
        raise IncompatibleError(
            f"`{method}` cannot compose `{name}`: {error}",
            "change a scale, or compose in another way: `persona method linear`",
        ) from error
    return found
