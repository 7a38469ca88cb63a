"""A steering vector: one direction per layer, in the strength that scale 1 means, with where and how it acts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import LayerRange
from personality.manifests.steering_record import Mode, Positions


@dataclass(frozen=True)
class Gate:
    """When a vector acts: where the projection of the prompt's last token on `direction` passes `threshold`.

    Attributes:
        layer: after which the prompt is looked at.
        direction: unit, float32 (d,).
        threshold: of the projection.
        above: act above the threshold; else below.
    """

    layer: int
    direction: Tensor
    threshold: float
    above: bool = True


@dataclass(frozen=True)
class SteeringVector:
    """Directions in activation space.

    Attributes:
        tensors: float32 (d,) by layer: what acts at scale 1 when this layer is the only one.
        positions, mode: see `Positions` and `Mode`.
        layers: where it acts unless a use says otherwise.
        joint: factor that makes `layers` together as strong as scale 1 means.
        gate: when it acts; None for always.
    """

    tensors: dict[int, Tensor]
    positions: Positions
    mode: Mode
    layers: tuple[int, ...]
    joint: float = 1.0
    gate: Gate | None = None

    @property
    def width(self) -> int:
        """The width d of the residual stream."""
        return next(iter(self.tensors.values())).numel()

    @property
    def norm(self) -> float:
        """Euclidean norm of what acts at scale 1 in the default layers."""
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in self.acting().values()))

    def acting(self, layers: LayerRange | None = None, label: str = "the vector") -> dict[int, Tensor]:
        """What acts at scale 1, float32 (d,) by layer.

        n layers share the strength: each has 1/n of what it would have alone. For the default layers a measured factor
        (`joint`) makes the whole exactly as strong as scale 1 means; other ranges are as strong as shifts that add up
        make them.

        Args:
            layers: instead of the default ones.
            label: for errors.

        Raises:
            IncompatibleError: when there is no direction for one of these layers.
        """
        wanted = self.layers if layers is None else tuple(range(layers.first, layers.last + 1))
        missing = [layer for layer in wanted if layer not in self.tensors]
        if missing:
            raise IncompatibleError(
                f"`{label}` has no direction for layer {missing[0]}; it has {listed(tuple(self.tensors))}",
                f"choose layers within {listed(tuple(self.tensors))}: `persona add NAME --layers A-B`",
            )
        factor = (self.joint if wanted == self.layers else 1.0) / len(wanted)
        return {layer: self.tensors[layer] * factor for layer in wanted}


def check(vector: SteeringVector) -> None:
    """Refuse what could not act.

    Raises:
        IncompatibleError: nothing in it, several widths, NaN or infinite values, a direction of length 0, default
            layers without a direction, or a condition that is looked at after the vector has acted.
    """
    widths = {tensor.numel() for tensor in vector.tensors.values()}
    if len(widths) != 1 or not vector.layers:
        raise IncompatibleError(
            f"a steering vector needs directions of one width, got {sorted(widths)}", "check the source"
        )
    for layer, tensor in vector.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise IncompatibleError(
                f"the direction of layer {layer} has NaN or infinite values", "extract it again, in float32"
            )
    zero = [layer for layer, tensor in vector.tensors.items() if not bool(tensor.any())]
    if zero:
        raise IncompatibleError(f"the direction of layer {zero[0]} is zero", "leave that layer out (`--layers`)")
    vector.acting()
    gate = vector.gate
    if gate is not None and (gate.direction.numel() not in widths or not bool(torch.isfinite(gate.direction).all())):
        raise IncompatibleError(
            f"the condition's direction has width {gate.direction.numel()} (the vector {vector.width}), or values that "
            "are no numbers",
            "fit the condition again",
        )
    if vector.gate is not None and vector.gate.layer > min(vector.layers):
        raise IncompatibleError(
            f"the condition is looked at after layer {vector.gate.layer}, the vector acts from layer "
            f"{min(vector.layers)} on",
            "a condition must lie in the first acting layer or before it",
        )


def listed(layers: tuple[int, ...]) -> str:
    """Layers for people: `4`, `4-9`, `1, 3-5`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
