"""What an imported file does at scale 1: exactly what is in it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import LayerRange
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.imported_directions import checked

BASE = BaseShape(layers=8, width=4, model_type="llama")


@given(layers=st.sets(st.integers(0, 7), min_size=1), seed=st.integers(0, 99))
def test_scale_one_is_the_files_strength(layers: set[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = {layer: torch.randn(4, generator=generator) for layer in layers}
    acting = checked(found, BASE, "x", "gguf-control-vector").steering_vector().acting()
    assert acting.keys() == layers
    for layer in layers:
        torch.testing.assert_close(acting[layer], found[layer], rtol=1e-6, atol=0)


def test_one_layer_at_a_time_shares() -> None:
    found = checked({l: torch.ones(4) for l in range(8)}, BASE, "x", "persona-vectors", together=False)  # noqa: E741
    assert found.steering_vector(layers=LayerRange(first=3, last=3)).acting()[3].tolist() == [1.0] * 4
    assert found.steering_vector(layers=LayerRange(first=3, last=6)).acting()[3].tolist() == [0.25] * 4


def test_layers_choose_and_keep_the_rest() -> None:
    found = checked({layer: torch.ones(4) * (layer != 3) for layer in range(6)}, BASE, "x", "torch")
    vector = found.steering_vector("decision", LayerRange(first=2, last=4))
    assert (vector.layers, vector.positions, vector.mode) == ((2, 4), "decision", "add")
    assert vector.acting()[4].tolist() == [1.0] * 4
    assert sorted(vector.tensors) == [0, 1, 2, 4, 5]
    for layers, wrong in ((LayerRange(first=4, last=6), "layer 6"), (LayerRange(first=3, last=3), "layer 3")):
        with pytest.raises(IncompatibleError, match=f"no direction for {wrong}; it has 0-2, 4-5"):
            found.steering_vector(layers=layers)


def test_what_was_read_is_a_copy() -> None:
    source = torch.ones(4)
    found = checked({0: source}, BASE, "x", "torch")
    source.fill_(9)
    assert found.directions[0].tolist() == [1.0] * 4
