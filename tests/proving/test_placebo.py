from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.proving.placebo import placebos
from personality.vectors.steering.steering_vector import SteeringVector


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=4), st.integers(1, 4))
def test_placebos_act_as_strongly_and_where_the_vector_does(seed: int, norms: list[float], count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, norm in enumerate(norms):
        direction = torch.randn(64, generator=generator)
        tensors[layer * 2] = direction / direction.norm() * norm
    vector = SteeringVector(tensors, "decision", "norm-preserving", tuple(tensors), 1.3)
    made = placebos(vector, count, seed)
    assert len(made) == count
    for placebo in made:
        assert (placebo.positions, placebo.mode) == ("decision", "norm-preserving")
        assert (placebo.layers, placebo.joint) == (vector.layers, vector.joint)
        for layer, tensor in tensors.items():
            torch.testing.assert_close(placebo.tensors[layer].norm(), tensor.norm(), rtol=1e-5, atol=0)


def test_placebos_are_drawn_by_seed_and_differ() -> None:
    vector = SteeringVector({1: torch.ones(256), 2: torch.ones(256)}, "all", "add", (1, 2))
    first, second = placebos(vector, 2, seed=3)
    again = placebos(vector, 5, seed=3)
    assert torch.equal(first.tensors[1], again[0].tensors[1])
    assert torch.equal(second.tensors[2], again[1].tensors[2])
    cosines = [
        torch.cosine_similarity(first.tensors[1], other, dim=0).abs()
        for other in (first.tensors[2], second.tensors[1], placebos(vector, 1, seed=4)[0].tensors[1], torch.ones(256))
    ]
    assert max(map(float, cosines)) < 0.25
