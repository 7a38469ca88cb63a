"""From a vector and a scale to what acts in each layer; several directions made orthogonal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import LayerRange
from personality.vectors.steering.injection import Injection, injections, orthogonalized
from personality.vectors.steering.steering_vector import Gate, SteeringVector, check, listed


def vector(layers: tuple[int, ...] = (1,), joint: float = 1.0, gate: Gate | None = None) -> SteeringVector:
    tensors = {layer: torch.full((4,), float(layer + 1)) for layer in range(4)}
    return SteeringVector(tensors, "all", "add", layers, joint, gate)


def test_one_layer_acts_whole_and_several_share_the_strength() -> None:
    assert {k: v.tolist() for k, v in vector().acting().items()} == {1: [2.0] * 4}
    both = vector(layers=(1, 2), joint=1.5).acting()
    assert {k: v.tolist() for k, v in both.items()} == {1: [1.5] * 4, 2: [2.25] * 4}
    other = vector(layers=(1, 2), joint=1.5).acting(LayerRange(first=2, last=3))
    assert {k: v.tolist() for k, v in other.items()} == {2: [1.5] * 4, 3: [2.0] * 4}


def test_scales_multiply_and_zero_leaves_nothing() -> None:
    (item,) = injections(vector(), -0.5, label="a@1")
    assert item.vector.tolist() == [-1.0] * 4
    assert (item.scale, item.layer, item.label) == (-0.5, 1, "a@1")
    assert injections(vector(), 0.0) == ()


def test_a_layer_without_a_direction_is_refused_with_those_there_are() -> None:
    with pytest.raises(IncompatibleError, match=r"`a@1` has no direction for layer 4; it has 0-3"):
        injections(vector(), 1.0, LayerRange(first=3, last=5), "a@1")


def test_a_condition_must_come_before_the_vector_acts() -> None:
    gated = vector(layers=(2,), gate=Gate(2, torch.ones(4) / 2, 0.1))
    check(gated)
    with pytest.raises(IncompatibleError, match="condition after layer 2: it cannot act in layer 1"):
        injections(gated, 1.0, LayerRange(first=1, last=3), "a@1")
    with pytest.raises(IncompatibleError, match="looked at after layer 3"):
        check(vector(layers=(2,), gate=Gate(3, torch.ones(4) / 2, 0.1)))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "one width"),
        ({0: torch.ones(3), 1: torch.ones(4)}, r"\[3, 4\]"),
        ({1: torch.tensor([1.0, float("nan")])}, "layer 1 has NaN"),
        ({1: torch.zeros(4)}, "layer 1 is zero"),
        ({0: torch.ones(4)}, "no direction for layer 1"),
    ],
)
def test_what_could_not_act_is_refused(tensors: dict[int, torch.Tensor], message: str) -> None:
    with pytest.raises(IncompatibleError, match=message):
        check(SteeringVector(tensors, "all", "add", (1,)))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 5), seed=st.integers(0, 1000))
def test_orthogonalized_directions_are_orthogonal_keep_their_lengths_and_know_no_order(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given_ = [
        Injection(2, torch.randn(16, generator=generator) * (index + 1), "all", "add", label=f"v{index}@1")
        for index in range(count)
    ]
    alone = Injection(1, torch.ones(16), "all", "add", label="v0@1")
    found = orthogonalized([*given_, alone])
    assert found[-1] is alone
    stacked = torch.stack([item.vector for item in found[:-1]])
    lengths = torch.stack([item.vector for item in given_]).norm(dim=1)
    assert torch.allclose(stacked @ stacked.T, torch.diag(lengths**2), atol=1e-3)
    reverse = orthogonalized(given_[::-1])[::-1]
    for one, other in zip(found, reverse, strict=False):
        assert torch.allclose(one.vector, other.vector, atol=1e-4)
    # Orthogonal ones stay as they are.
    again = orthogonalized(found[:-1])
    assert all(torch.allclose(a.vector, b.vector, atol=1e-3) for a, b in zip(again, found, strict=False))


def test_directions_that_are_the_same_cannot_be_made_orthogonal() -> None:
    same = [Injection(2, torch.ones(8) * f, "all", "add", label=f"{f}@1") for f in (1, -2)]
    with pytest.raises(IncompatibleError, match="`1@1`, `-2@1` in layer 2 cannot be made orthogonal"):
        orthogonalized(same)


def test_layers_for_people() -> None:
    assert listed((4,)) == "4"
    assert listed((1, 3, 4, 5, 9)) == "1, 3-5, 9"
