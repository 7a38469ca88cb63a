"""The one way into every method that looks at a tensor as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from personality.composition import kernels
from personality.composition.methods.mergekit_methods import MERGEKIT_METHODS
from personality.composition.methods.operand import Operand
from personality.composition.methods.singular_vectors import SINGULAR_METHODS
from personality.composition.methods.surroundings import one_thread
from personality.manifests.composition_methods import METHODS, NATIVE, check_spread
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Composition, Use


def is_whole(composition: Composition) -> bool:
    """Whether the method needs whole tensors; the others are composed in blocks."""
    return composition.method not in NATIVE


def check(composition: Composition, touching: Mapping[str, Sequence[Use]]) -> None:
    """Refuse what the method cannot compose, before any weight is read.

    Args:
        composition: the method and its parameters.
        touching: by name of a tensor, the uses that change it.

    Raises:
        IncompatibleError: when more vectors change a tensor than the method knows what to do with, or a use's density
            does not go with the method's parameters.
    """
    method = METHODS[composition.method]
    for name, uses in touching.items():
        if method.most is not None and len(uses) > method.most:
            labels = [f"`{use.label}`" for use in uses]
            raise IncompatibleError(
                f"`{method.name}` composes {method.most} vector{'s' if method.most > 1 else ''} in a tensor; "
                f"`{name}` is changed by {len(labels)}: {', '.join(labels)}",
                "let them act in different layers (`persona add NAME --layers 0-9`), or choose a method for any "
                "number: `persona method --list`",
            )
    for use in {use.label: use for uses in touching.values() for use in uses}.values():
        if use.density is not None and "epsilon" in composition.parameters and "density" in composition.parameters:
            try:
                check_spread(use.density, composition.parameters["epsilon"])
            except ValueError as error:
                raise IncompatibleError(
                    f"`{use.label}`: {error}",
                    "give it another one (`persona add NAME --density`), or lower epsilon: `--set epsilon=`",
                ) from error


def delta(composition: Composition, name: str, base: Tensor, operands: Sequence[Operand]) -> Tensor:
    """Δ of one tensor, by any method but `linear` and `ties`.

    A vector that is all zeros in the tensor takes no part in it. Where fewer vectors remain than the method needs, they
    are added up: Δ = Σ s_i τ_i. The result depends on the arguments alone: not on threads, other tensors or random
    numbers drawn elsewhere.

    Args:
        composition: method, parameters and seed.
        name: of the tensor.
        base: W, any shape, the base's dtype.
        operands: at least one, in order of vector id, each with the base's shape in the compute dtype.

    Returns:
        Δ before rounding, the base's shape, the compute dtype.

    Raises:
        IncompatibleError: when the method has no result for these vectors.
        FallenApartError: when a scaled vector overflows.
    """
    acting = [operand for operand in operands if bool(operand.delta.any())]
    if not acting:
        return torch.zeros_like(operands[0].delta)
    method = METHODS[composition.method]
    with one_thread(), torch.no_grad():
        if len(acting) < method.least:
            return kernels.linear([operand.delta for operand in acting], [operand.scale for operand in acting])
        compute = SINGULAR_METHODS.get(method.name) or MERGEKIT_METHODS[method.name]
        return compute(composition, name, base, acting)
