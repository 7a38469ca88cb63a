"""How the steering of two versions differs, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from personality.manifests.canonical import digest_bytes
from personality.manifests.steering_record import Mode, Positions
from personality.vectors.steering.injection import Injection
from personality.vectors.tensors import tensor_bytes


@dataclass(frozen=True)
class SteeringDiff:
    """What acts after one layer at the same positions in two versions, all vectors together.

    Attributes:
        layer: its number.
        positions, mode: see `Positions` and `Mode`.
        condition: under which it acts, such as `layer 2 > 1.5`; empty for always.
        norm_before, norm_after: Euclidean norm of what acts in each version.
        norm_change: norm of the difference.
        cosine: of the two; None when either is zero.
    """

    layer: int
    positions: Positions
    mode: Mode
    condition: str
    norm_before: float
    norm_after: float
    norm_change: float
    cosine: float | None

    @property
    def place(self) -> str:
        """Positions, and mode and condition where they are not the usual ones, in words."""
        return ", ".join(
            [self.positions, *[self.mode] * (self.mode != "add"), *[self.condition] * bool(self.condition)]
        )


@dataclass(frozen=True)
class Interference:
    """How the directions of two behaviors relate in a layer in which both act.

    Attributes:
        first, second: labels, such as `candid@1`.
        layer: its number.
        cosine: 1 for the same direction, −1 for opposite ones, 0 for directions that leave each other alone.
    """

    first: str
    second: str
    layer: int
    cosine: float


_Key = tuple[int, Positions, Mode, str]


def steering_diff(before: Sequence[Injection], after: Sequence[Injection]) -> list[SteeringDiff]:
    """One entry for each layer, positions, mode and condition that either version uses, in order."""
    old, new = _sums(before), _sums(after)
    found = []
    for key in sorted({*old, *new}):
        some = old[key] if key in old else new[key]
        a, b = old.get(key, torch.zeros_like(some)), new.get(key, torch.zeros_like(some))
        nonzero = bool(a.any()) and bool(b.any())
        found.append(
            SteeringDiff(
                *key,
                norm_before=float(a.norm()),
                norm_after=float(b.norm()),
                norm_change=float((b - a).norm()),
                cosine=float(torch.nn.functional.cosine_similarity(a, b, dim=0)) if nonzero else None,
            )
        )
    return found


def interference(injections: Sequence[Injection]) -> list[Interference]:
    """The cosine of any two behaviors' directions in every layer that they share, scales' signs included."""
    found = []
    for index, first in enumerate(injections):
        for second in injections[index + 1 :]:
            if first.layer == second.layer and first.label != second.label:
                a, b = sorted((first, second), key=lambda item: item.label)
                cosine = torch.nn.functional.cosine_similarity(a.vector.double(), b.vector.double(), dim=0)
                found.append(Interference(a.label, b.label, a.layer, float(cosine)))
    return sorted(found, key=lambda item: (item.first, item.second, item.layer))


def _condition(item: Injection) -> str:
    """A condition in words; the digest tells two directions with one threshold apart."""
    if item.gate is None:
        return ""
    side = ">" if item.gate.above else "<"
    direction = digest_bytes(tensor_bytes(item.gate.direction.float()))[:6]
    return f"layer {item.gate.layer} {side} {item.gate.threshold:.4g} ({direction})"


def _sums(injections: Sequence[Injection]) -> dict[_Key, Tensor]:
    sums: dict[_Key, Tensor] = {}
    for item in injections:
        key = (item.layer, item.positions, item.mode, _condition(item))
        sums[key] = sums[key] + item.vector.double() if key in sums else item.vector.double()
    return sums
