"""Placebos: random directions that act where and as strongly as a vector does."""

from __future__ import annotations

from dataclasses import replace

import torch

from personality.vectors.steering.steering_vector import SteeringVector

PLACEBOS = 5


def placebos(vector: SteeringVector, count: int = PLACEBOS, seed: int = 0) -> list[SteeringVector]:
    """Vectors like a given one, each layer's direction replaced by a random one of the same norm.

    Directions are uniform on the sphere (normal entries, normalized), one stream of numbers for each placebo, so that
    the first few are the same however many are made. Layers, positions, mode, joint factor and condition stay.

    Args:
        vector: to imitate.
        count: how many.
        seed: of the draw.
    """
    made = []
    for number in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        tensors = {}
        for layer in sorted(vector.tensors):
            direction = torch.randn(vector.width, generator=generator, dtype=torch.float64)
            length = vector.tensors[layer].double().norm()
            tensors[layer] = (direction / direction.norm() * length).float()
        made.append(replace(vector, tensors=tensors))
    return made
