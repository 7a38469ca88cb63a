"""What a use of a steering vector does to a model: one injection per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import LayerRange
from personality.manifests.steering_record import Mode, Positions
from personality.vectors.steering.steering_vector import Gate, SteeringVector

_DEPENDENT = 1e-3
"""Smallest eigenvalue of the cosines' matrix at which directions still count as different ones."""


@dataclass(frozen=True)
class Injection:
    """One direction in one layer, at its scale.

    Attributes:
        layer: after which it acts.
        vector: float32 (d,), scale and share of the layer included. In mode `project` its norm is the share of the part
            along it that is taken out (1: all of it), negative scales turn the vector around and add that share.
        positions, mode: see `Positions` and `Mode`.
        gate: when it acts; None for always.
        label: whose it is, such as `candid@1`.
        scale: as typed; its sign tells `project` which way.
    """

    layer: int
    vector: Tensor
    positions: Positions
    mode: Mode
    gate: Gate | None = None
    label: str = ""
    scale: float = 1.0


def injections(
    vector: SteeringVector, scale: float, layers: LayerRange | None = None, label: str = "the vector"
) -> tuple[Injection, ...]:
    """A vector at a scale; nothing at scale 0, so that nothing of the base is touched.

    Raises:
        IncompatibleError: see `SteeringVector.acting`; for a condition that is looked at after the vector has acted.
    """
    if scale == 0:
        return ()
    acting = vector.acting(layers, label)
    if vector.gate is not None and vector.gate.layer > min(acting):
        raise IncompatibleError(
            f"`{label}` has a condition after layer {vector.gate.layer}: it cannot act in layer {min(acting)}",
            f"choose layers from {vector.gate.layer} on (`--layers`)",
        )
    return tuple(
        Injection(layer, tensor * scale, vector.positions, vector.mode, vector.gate, label, scale)
        for layer, tensor in acting.items()
    )


def orthogonalized(given: Sequence[Injection]) -> tuple[Injection, ...]:
    """The same injections with the directions of each layer made orthogonal, each keeping its length.

    Löwdin's symmetric orthogonalization (Löwdin 1950, J. Chem. Phys. 18:365): of all orthonormal sets the one nearest
    to the given directions, the same whatever their order: U' = G^(−1/2) U with G = U Uᵀ the matrix of their cosines.

    Raises:
        IncompatibleError: when two of a layer's directions are the same, or opposite.
    """
    result = list(given)
    for layer in sorted({item.layer for item in given}):
        places = [index for index, item in enumerate(given) if item.layer == layer]
        if len(places) < 2:
            continue
        vectors = torch.stack([given[index].vector for index in places]).double()
        lengths = vectors.norm(dim=1, keepdim=True)
        units = vectors / lengths
        values, basis = torch.linalg.eigh(units @ units.T)
        if float(values[0]) < _DEPENDENT:
            labels = ", ".join(f"`{given[index].label}`" for index in places)
            raise IncompatibleError(
                f"the directions of {labels} in layer {layer} cannot be made orthogonal: one is made of the others",
                "leave one of them out, or let them add up: `persona method --steering sum`",
            )
        turned = (basis * values.rsqrt()) @ basis.T @ units * lengths
        for index, vector in zip(places, turned.float(), strict=True):
            item = given[index]
            result[index] = Injection(item.layer, vector, item.positions, item.mode, item.gate, item.label, item.scale)
    return tuple(result)
