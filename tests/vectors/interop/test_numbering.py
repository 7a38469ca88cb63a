"""Which layer a tensor belongs to: by its number, or by its row; anything that could mean two things is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.errors import IncompatibleError, UsageError
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.numbering import directions, numbered

BASE = BaseShape(layers=4, width=3, model_type="llama")
ROWS = torch.arange(1.0, 16.0).reshape(5, 3)


def row(number: int) -> Tensor:
    return torch.full((3,), float(number) + 1)


def values(found: dict[int, Tensor]) -> dict[int, list[float]]:
    return {layer: tensor.tolist() for layer, tensor in found.items()}


@given(
    layers=st.sets(st.integers(0, 3), min_size=1),
    name=st.sampled_from(["", "layer.", "layers.", "layer_", "model.layers.", "h", "direction.", "v2/block-"]),
)
def test_a_name_and_a_number(layers: set[int], name: str) -> None:
    found = numbered({f"{name}{layer}": row(layer) for layer in layers}, BASE, "x", None)
    assert not found.hidden_states
    assert values(found.tensors) == {layer: row(layer).tolist() for layer in layers}


def test_numbers_themselves() -> None:
    assert values(numbered({3: row(3), 1: row(1)}, BASE, "x", None).tensors) == {3: [4.0] * 3, 1: [2.0] * 3}


@pytest.mark.parametrize("content", [ROWS, list(ROWS), {"v": ROWS}, {f"layer.{i}": ROWS[i] for i in range(5)}])
def test_one_more_than_layers_counts_as_hidden_states(content: Any) -> None:
    found = directions(content, BASE, "x", None, "torch")
    assert values(found.directions) == {layer: ROWS[layer + 1].tolist() for layer in range(4)}
    assert (found.source, found.positions, found.together) == ("persona-vectors", "response", False)
    assert "embeddings' output, is left out" in found.notes[0]
    assert "after the final norm" in found.notes[1]


@pytest.mark.parametrize("content", [ROWS[:4], list(ROWS[:4]), {"v": ROWS[:4]}, ROWS[:4, None], ROWS[:4].double()])
def test_as_many_as_layers_are_their_outputs(content: Any) -> None:
    found = directions(content, BASE, "x", None, "torch")
    assert values(found.directions) == {layer: ROWS[layer].tolist() for layer in range(4)}
    assert (found.source, found.positions, found.together) == ("torch", "all", True)


@pytest.mark.parametrize("content", [row(0), row(0)[None], {"v": row(0)}, [row(0)]])
def test_a_single_direction_needs_a_layer(content: Any) -> None:
    with pytest.raises(UsageError, match="does not say of which layer") as caught:
        numbered(content, BASE, "x", None)
    assert "--layers" in caught.value.hint
    assert values(numbered(content, BASE, "x", 2).tensors) == {2: [1.0] * 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(6, 3), r"shape \[6, 3\], the base has 4 layers \(0-3\) of width 3.*\[4, 3\].*\[5, 3\]"),
        (torch.ones(5, 2), r"shape \[5, 2\]"),
        (torch.ones(2, 2, 3), r"shape \[2, 2, 3\]"),
        (torch.tensor(1.0), r"shape \[\]"),
        ({"layer.1": row(1), "layer.01": row(1)}, "several tensors for layer 1"),
        ({"a.1": row(1), "b.2": row(1)}, r"several kinds: `a\.…`, `b\.…`"),
        ({"layer.1": row(1), "bias": row(1)}, r"a tensor \[3\] named `bias`"),
        ({"layer.1": [1.0]}, "a `list` named `layer.1`"),
        ({True: row(1), 2: row(2)}, "named `True`"),
        ({-1: row(1), 2: row(2)}, "named `-1`"),
        ([row(1), [2.0]], "a list of other things"),
        ([row(1), torch.ones(2)], "a list of other things"),
        ([torch.ones(1).expand(2**40)] * 5, r"shape \[5, 1099511627776\]"),
        ([row(1)] * 7, r"shape \[7, 3\]"),
        ({"layer." + "9" * 5000: row(1), "layer.1": row(1)}, "several kinds|names no layer"),
        ([], "holds nothing"),
        ("text", "holds a `str`"),
        (None, "holds a `NoneType`"),
        ({}, "has no directions"),
        ({"layer.1": torch.ones(4)}, r"layer 1 in x has the shape \[4\], the base's residual stream has width 3"),
        ({"layer.1": torch.ones(3, 3)}, r"has the shape \[3, 3\]"),
        ({"layer.4": row(1)}, r"layer 4, the base has 4 layers \(0-3\)"),
        ({"layer.1": torch.ones(3, dtype=torch.int64)}, r"is torch\.int64"),
        ({"layer.1": torch.ones(3).to_sparse()}, r"torch\.sparse_coo"),
        ({"layer.1": torch.ones(3, device="meta")}, "on meta"),
        ({"layer.1": torch.tensor([1.0, float("nan"), float("-inf")])}, "layer 1 in x has 2 NaN or infinite values"),
        (torch.zeros(4, 3), r"all directions in x are zero \(layers 0-3\)"),
    ],
)
def test_refused(content: Any, message: str) -> None:
    with pytest.raises(IncompatibleError, match=message) as caught:
        directions(content, BASE, "x", None, "torch")
    assert caught.value.hint
