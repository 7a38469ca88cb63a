"""Directions out of a file of another program, checked against the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import LayerRange
from personality.manifests.steering_record import Positions
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.steering.steering_vector import SteeringVector, listed

Source = Literal["gguf-control-vector", "safetensors", "persona-vectors", "torch"]
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class ImportedDirections:
    """What a file holds.

    Attributes:
        directions: float32 (d,) by layer, in the file's own strength; layer l means the output of decoder block l.
        source: whose layout it is.
        positions: where the program whose layout it is lets directions act.
        together: whether that program adds all of them at once, each in full. Otherwise it acts in one layer at a time,
            and several layers share the strength.
        idle: layers whose direction in the file is zero; they are not among `directions`.
        notes: what a user should know of how the file was read.
        vector: what a file of this program says in full, where and how it acts included; None for all others.
    """

    directions: dict[int, Tensor]
    source: Source
    positions: Positions = "all"
    together: bool = True
    idle: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    vector: SteeringVector | None = None

    def steering_vector(self, positions: Positions | None = None, layers: LayerRange | None = None) -> SteeringVector:
        """A steering vector that at scale 1 adds the file's own strengths.

        Args:
            positions: where it acts; None for where the file's own program would let it.
            layers: the layers that it acts in unless a use says otherwise; None for all of the file. The directions of
                the others are kept.

        Raises:
            IncompatibleError: when the file has no direction for one of these layers.
        """
        if self.vector is not None:
            return self._own(self.vector, positions, layers)
        acting = tuple(sorted(self.directions)) if layers is None else self._within(layers)
        return SteeringVector(
            tensors=dict(self.directions),
            positions=positions or self.positions,
            mode="add",
            layers=acting,
            # n layers share a steering vector's strength: times n, each has the file's own.
            joint=float(len(acting)) if self.together else 1.0,
        )

    def _own(self, vector: SteeringVector, positions: Positions | None, layers: LayerRange | None) -> SteeringVector:
        acting = vector.layers if layers is None else self._within(layers)
        return replace(
            vector,
            positions=positions or vector.positions,
            layers=acting,
            # Its factor was measured for its own layers only.
            joint=vector.joint if acting == vector.layers else 1.0,
        )

    def _within(self, layers: LayerRange) -> tuple[int, ...]:
        wanted = [layer for layer in range(layers.first, layers.last + 1) if layer not in self.idle]
        missing = [layer for layer in wanted if layer not in self.directions]
        if missing or not wanted:
            raise IncompatibleError(
                f"the file has no direction for layer {missing[0] if missing else layers.first}; it has "
                f"{listed(tuple(self.directions))}",
                f"choose layers within {listed(tuple(self.directions))}: `--layers A-B`",
            )
        return tuple(wanted)


def checked(
    found: Mapping[int, Tensor],
    base: BaseShape,
    where: str,
    source: Source,
    *,
    positions: Positions = "all",
    together: bool = True,
    notes: tuple[str, ...] = (),
) -> ImportedDirections:
    """Directions of a file, refused where they do not fit the base or cannot act.

    Args:
        found: by layer, each (d,) or with leading ones; any float dtype. Not changed, and copied.
        base: what they have to fit.
        where: the file, for errors.
        source, positions, together, notes: see `ImportedDirections`.

    Raises:
        IncompatibleError: no direction, other dtypes or shapes, another width, layers that the base does not have, NaN
            or infinite values, nothing but zeros.
    """
    if not found:
        raise IncompatibleError(f"{where} has no directions", "give a file with one direction per layer")
    for layer, tensor in found.items():
        _check_one(tensor, layer, base, where)
    highest = max(found)
    if highest >= base.layers:
        raise IncompatibleError(
            f"{where} has a direction for layer {highest}, the base has {base}",
            "it was made for another base; if it only counts from 1, write it again with the first block as layer 0",
        )
    directions = {layer: found[layer].detach().reshape(-1).float().clone() for layer in sorted(found)}
    idle = tuple(layer for layer, tensor in directions.items() if not bool(tensor.any()))
    if len(idle) == len(directions):
        raise IncompatibleError(
            f"all directions in {where} are zero (layers {listed(idle)})", "make the file again: it steers nothing"
        )
    if idle:
        notes = (*notes, f"zero in the file and left out: the directions of layers {listed(idle)}")
    if any(tensor.dtype == torch.float64 for tensor in found.values()):
        notes = (*notes, "float64 values were rounded to float32")
    kept = {layer: tensor for layer, tensor in directions.items() if layer not in idle}
    return ImportedDirections(kept, source, positions, together, idle, notes)


def _check_one(tensor: Tensor, layer: int, base: BaseShape, where: str) -> None:
    if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise IncompatibleError(
            f"the direction of layer {layer} in {where} is {tensor.dtype}, {tensor.layout}, on {tensor.device}",
            "save dense float32, float16 or bfloat16 values",
        )
    if tensor.numel() != base.width or tensor.shape[-1:] != (base.width,):
        raise IncompatibleError(
            f"the direction of layer {layer} in {where} has the shape {list(tensor.shape)}, the base's residual stream "
            f"has width {base.width}",
            "it was made for another base: make it on this one, `persona extract`",
        )
    broken = int((~torch.isfinite(tensor)).sum())
    if broken:
        raise IncompatibleError(
            f"the direction of layer {layer} in {where} has {broken} NaN or infinite values",
            "make the file again, in float32",
        )
