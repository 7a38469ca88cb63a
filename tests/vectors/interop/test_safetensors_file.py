"""Safetensors: our own layout comes back whole, plain ones as directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from personality.manifests.errors import CorruptError, IncompatibleError
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.safetensors_file import read_safetensors, write_safetensors
from personality.vectors.steering.steering_vector import Gate, SteeringVector

BASE = BaseShape(layers=4, width=6, model_type="qwen3")
HERE, ELSEWHERE = "a" * 64, "b" * 64


def same(first: SteeringVector, second: SteeringVector) -> bool:
    gates = first.gate, second.gate
    if gates[0] is not None and gates[1] is not None:
        alike = torch.equal(gates[0].direction, gates[1].direction) and (
            (gates[0].layer, gates[0].threshold, gates[0].above) == (gates[1].layer, gates[1].threshold, gates[1].above)
        )
    else:
        alike = gates == (None, None)
    return (
        alike
        and first.tensors.keys() == second.tensors.keys()
        and all(torch.equal(tensor, second.tensors[layer]) for layer, tensor in first.tensors.items())
        and (first.positions, first.mode, first.layers, first.joint)
        == (second.positions, second.mode, second.layers, second.joint)
    )


@st.composite
def vectors(draw: st.DrawFn) -> SteeringVector:
    layers = sorted(draw(st.sets(st.integers(0, 3), min_size=1)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    acting = tuple(sorted(draw(st.sets(st.sampled_from(layers), min_size=1))))
    gate = Gate(draw(st.integers(0, acting[0])), torch.randn(6, generator=generator), draw(st.floats(-5, 5)), True)
    return SteeringVector(
        {layer: torch.randn(6, generator=generator) for layer in layers},
        draw(st.sampled_from(["all", "response", "decision"])),
        draw(st.sampled_from(["add", "project", "norm-preserving"])),
        acting,
        draw(st.floats(0.1, 10)),
        draw(st.sampled_from([None, gate])),
    )


@settings(max_examples=40, deadline=None)
@given(vector=vectors())
def test_own_layout_comes_back_whole(tmp_path_factory: pytest.TempPathFactory, vector: SteeringVector) -> None:
    folder = tmp_path_factory.mktemp("own")
    write_safetensors(folder / "v", vector, "candid@2", HERE)
    found = read_safetensors(folder / "v", BASE, HERE)
    assert same(found.steering_vector(), vector)
    write_safetensors(folder / "again", found.steering_vector(), "candid@2", HERE)
    assert (folder / "v").read_bytes() == (folder / "again").read_bytes()
    assert load_file(folder / "v").keys() >= {f"layer.{layer}" for layer in vector.tensors}


def own(path: Path, width: int = 6) -> Path:
    write_safetensors(path, SteeringVector({1: torch.ones(width)}, "all", "add", (1,)), "candid@2", HERE)
    return path


def test_own_layout_of_another_base(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"from `candid@2`, was made for a base with the fingerprint a+"):
        read_safetensors(own(tmp_path / "v"), BASE, ELSEWHERE)
    with pytest.raises(IncompatibleError, match=r"shape \[5\], the base's residual stream has width 6"):
        read_safetensors(own(tmp_path / "v", width=5), BASE, HERE)


def test_own_layout_that_was_edited(tmp_path: Path) -> None:
    def edit(old: str, new: str) -> Path:
        with safe_open(own(tmp_path / "v"), "pt") as file:
            metadata = {key: text.replace(old, new) for key, text in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, tmp_path / "edited", metadata)
        return tmp_path / "edited"

    with pytest.raises(CorruptError, match="does not say how it acts"):
        read_safetensors(edit('"joint"', '"joined"'), BASE, HERE)
    with pytest.raises(CorruptError, match="does not say how it acts"):
        read_safetensors(edit('"positions":"all"', '"positions":"some"'), BASE, HERE)
    with pytest.raises(CorruptError, match="does not say how it acts"):
        read_safetensors(edit('"mode":"add"', '"mode":"rotate"'), BASE, HERE)
    with pytest.raises(CorruptError, match="format 2"):
        read_safetensors(edit('"format":1', '"format":2'), BASE, HERE)
    with pytest.raises(IncompatibleError, match="is a task vector of this program"):
        read_safetensors(edit('"kind":"steering"', '"kind":"task"'), BASE, HERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "dense"}, "encoding 'dense'"),
        ({"layers": []}, r"layers \[\]"),
        ({"layers": 1}, "layers 1,"),
        ({"layers": [True]}, r"layers \[True\]"),
        ({"layers": [1, 1]}, r"layers \[1, 1\], some of them twice"),
        ({"layers": [1, 2]}, "without a tensor `layer.2`"),
        ({"joint": "much"}, "joint 'much'"),
        ({"joint": 10**400}, "OverflowError"),
        ({"condition": None}, "a tensor `condition`"),
        ({"condition": {}}, "not layer, threshold and above"),
        ({"condition": {"layer": 0, "threshold": 1.0}}, "not layer, threshold and above"),
        ({"condition": {"layer": 0, "threshold": "1", "above": True}}, "'threshold': '1'"),
        ({"condition": {"layer": 0, "threshold": 1.0, "above": "no"}}, "'above': 'no'"),
        ({"condition": {"layer": -1, "threshold": 1.0, "above": True}}, "'layer': -1"),
        ({"condition": {"layer": "0", "threshold": 1.0, "above": True}}, "'layer': '0'"),
    ],
    ids=str,
)
def test_own_layout_with_a_header_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    gate = Gate(0, torch.ones(6), 0.5, True)
    write_safetensors(tmp_path / "v", SteeringVector({1: torch.ones(6)}, "all", "add", (1,), gate=gate), "a@1", HERE)
    with safe_open(tmp_path / "v", "pt") as file:
        (key,) = file.metadata()
        header = json.loads(file.metadata()[key])
    save_file(load_file(tmp_path / "v"), tmp_path / "edited", {key: json.dumps({**header, **changes})})
    with pytest.raises(CorruptError, match=message) as caught:
        read_safetensors(tmp_path / "edited", BASE, HERE)
    assert "does not say how it acts" in caught.value.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["layer.", "layers.", ""])
def test_plain_tables(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tensors = {f"{name}{layer}": torch.randn(6).to(dtype) for layer in (1, 3)}
    save_file(tensors, tmp_path / "v")
    found = read_safetensors(tmp_path / "v", BASE, HERE)
    assert (found.source, found.positions, found.together, found.notes) == ("safetensors", "all", True, ())
    assert list(found.directions) == [1, 3]
    assert all(torch.equal(found.directions[layer], tensors[f"{name}{layer}"].float()) for layer in (1, 3))


@pytest.mark.parametrize("rows", [4, 5])
def test_plain_stacks(tmp_path: Path, rows: int) -> None:
    stack = torch.randn(rows, 6)
    save_file({"directions": stack}, tmp_path / "v")
    found = read_safetensors(tmp_path / "v", BASE, HERE)
    assert found.source == ("safetensors" if rows == 4 else "persona-vectors")
    assert all(torch.equal(found.directions[layer], stack[layer + rows - 4]) for layer in range(4))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layer.1": torch.ones(6, dtype=torch.int8)}, "`layer.1` in .* is I8"),
        ({"layer.1": torch.ones(7)}, r"shape \[7\]"),
        ({"model.layers.0.mlp.up.weight": torch.ones(6, 6), "lm_head.weight": torch.ones(6, 6)}, "names no layer"),
    ],
)
def test_refused(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    save_file(tensors, tmp_path / "v")
    with pytest.raises(IncompatibleError, match=message):
        read_safetensors(tmp_path / "v", BASE, HERE)


def test_cut_files_are_corrupt(tmp_path: Path) -> None:
    whole = own(tmp_path / "v").read_bytes()
    for end in range(1, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(CorruptError):
            read_safetensors(tmp_path / "cut", BASE, HERE)
