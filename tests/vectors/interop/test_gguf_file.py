"""Control vectors: repeng writes what we read and reads what we write, and what is no control vector is refused."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.errors import CorruptError, IncompatibleError
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.gguf_file import read_gguf, same_model_type, write_gguf

BASE = BaseShape(layers=6, width=8, model_type="qwen3")


@pytest.fixture(scope="module")
def control_vector() -> Any:
    """repeng's class."""
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # type: ignore[attr-defined]  # repeng 0.4.0 names it in annotations
    return pytest.importorskip("repeng").ControlVector


def some(*layers: int, seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(BASE.width, generator=generator) for layer in layers}


def write_raw(path: Path, tensors: dict[str, Any], arch: str = "controlvector", hint: str | None = "qwen3") -> Path:
    """A GGUF file with anything in it."""
    writer = gguf.GGUFWriter(path, arch)
    if hint is not None:
        writer.add_string("controlvector.model_hint", hint)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ones(dtype: Any = np.float32, width: int = BASE.width) -> Any:
    return np.ones(width, dtype=dtype)


def test_what_repeng_writes(control_vector: Any, tmp_path: Path) -> None:
    directions = some(5, 2, 3)
    control_vector("qwen3", {layer: item.numpy() for layer, item in directions.items()}).export_gguf(tmp_path / "v")
    found = read_gguf(tmp_path / "v", BASE)
    assert (found.source, found.positions, found.together, found.notes) == ("gguf-control-vector", "all", True, ())
    assert list(found.directions) == [2, 3, 5]
    assert all(torch.equal(found.directions[layer], item) for layer, item in directions.items())


@settings(max_examples=20, deadline=None)
@given(
    layers=st.lists(st.integers(1, BASE.layers - 1), min_size=1, unique=True),
    seed=st.integers(0, 99),
    model_type=st.sampled_from(["qwen3", "llama", "gemma2"]),
)
def test_byte_for_byte_as_repeng(
    control_vector: Any, tmp_path_factory: pytest.TempPathFactory, layers: list[int], seed: int, model_type: str
) -> None:
    folder = tmp_path_factory.mktemp("gguf")
    directions = some(*layers, seed=seed)
    write_gguf(folder / "ours", directions, model_type)
    theirs = control_vector(model_type, {layer: item.numpy() for layer, item in directions.items()})
    theirs.export_gguf(folder / "theirs")
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert control_vector.import_gguf(folder / "ours") == theirs
    found = read_gguf(folder / "ours", BaseShape(BASE.layers, BASE.width, model_type)).directions
    assert found.keys() == directions.keys()
    assert all(torch.equal(found[layer], item) for layer, item in directions.items())


def test_steers_as_repeng_does(control_vector: Any, tmp_path: Path) -> None:
    from repeng import ControlModel

    from personality.model import load_model
    from personality.vectors.steering.hooks import steered
    from personality.vectors.steering.injection import injections
    from tests.conftest import tiny_checkpoint

    model = load_model(tiny_checkpoint("llama", tmp_path / "base"))
    ids = torch.arange(10)[None] + 3  # repeng's mask takes one row only with this transformers
    rows = {layer: torch.randn(32, generator=torch.Generator().manual_seed(layer)) for layer in (1, 2)}
    vector = control_vector("llama", {layer: item.numpy() for layer, item in rows.items()})
    vector.export_gguf(tmp_path / "v.gguf")
    ours = read_gguf(tmp_path / "v.gguf", BaseShape(3, 32, "llama")).steering_vector()
    with torch.no_grad():
        base = model(input_ids=ids).logits
        with steered(model, injections(ours, 0.7)):
            found = model(input_ids=ids).logits
        theirs = ControlModel(model, [1, 2])
        theirs.set_control(vector, 0.7)
        expected = theirs(input_ids=ids).logits
    assert float((expected - base).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_half_precision_is_read(tmp_path: Path) -> None:
    found = read_gguf(write_raw(tmp_path / "v", {"direction.2": ones(np.float16) * np.float16(0.1)}), BASE)
    assert found.directions[2].dtype == torch.float32
    assert torch.equal(found.directions[2], torch.full((8,), 0.1, dtype=torch.float16).float())


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v", "controlvector", endianess=gguf.GGUFEndian.BIG)
    writer.add_string("controlvector.model_hint", "qwen3")
    writer.add_tensor("direction.1", np.arange(1, 9, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_gguf(tmp_path / "v", BASE).directions[1].tolist() == list(range(1, 9))


def test_layer_zero(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="cannot act in layer 0") as caught:
        write_gguf(tmp_path / "v", some(0, 1), "qwen3")
    assert "safetensors-directions" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    found = read_gguf(write_raw(tmp_path / "v", {"direction.0": ones(), "direction.1": ones()}), BASE)
    assert list(found.directions) == [0, 1]
    assert "llama.cpp refuses" in found.notes[0]


def test_zero_directions_are_told(tmp_path: Path) -> None:
    found = read_gguf(write_raw(tmp_path / "v", {"direction.1": ones() * 0, "direction.2": ones()}), BASE)
    assert (list(found.directions), found.idle) == ([2], (1,))
    assert found.notes == ("zero in the file and left out: the directions of layers 1",)
    with pytest.raises(IncompatibleError, match=r"all directions in .* are zero"):
        read_gguf(write_raw(tmp_path / "v", {"direction.1": ones() * 0}), BASE)


@pytest.mark.parametrize(
    ("tensors", "arch", "hint", "message"),
    [
        ({"blk.0.attn_q.weight": ones()}, "llama", None, "GGUF model or adapter of the architecture `llama`"),
        ({"direction.1": ones()}, "controlvector", "gemma2", "made for a `gemma2` model, the base is a `qwen3` model"),
        ({"direction.1": ones(width=16)}, "controlvector", "qwen3", r"shape \[16\].*width 8"),
        ({"direction.6": ones()}, "controlvector", "qwen3", r"layer 6, the base has 6 layers \(0-5\)"),
        ({"direction.1": ones() * np.inf}, "controlvector", "qwen3", "layer 1 .* has 8 NaN or infinite values"),
        ({"direction.1": ones(), "sensor": ones()}, "controlvector", "qwen3", "tensor `sensor`, which is no direction"),
        ({"direction.01": ones()}, "controlvector", "qwen3", "`direction.01`, which is no direction"),
        ({"direction.1": ones(np.int32)}, "controlvector", "qwen3", "`direction.1` in .* is I32"),
        ({"direction.1": np.ones((2, 8), np.float32)}, "controlvector", "qwen3", r"shape \[2, 8\]"),
        ({"direction.1000000": ones()}, "controlvector", "qwen3", "`direction.1000000`, which is no direction"),
        ({}, "controlvector", "qwen3", "has no directions"),
    ],
)
def test_refused(tmp_path: Path, tensors: dict[str, Any], arch: str, hint: str | None, message: str) -> None:
    path = write_raw(tmp_path / "v", tensors, arch, hint)
    with pytest.raises(IncompatibleError, match=message) as caught:
        read_gguf(path, BASE)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_quantized_directions_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v", "controlvector")
    blocks = gguf.quants.quantize(np.ones(32, np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("direction.1", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(IncompatibleError, match=r"`direction\.1` in .* is Q8_0"):
        read_gguf(tmp_path / "v", BaseShape(6, 32, "qwen3"))


def test_no_hint_is_told(tmp_path: Path) -> None:
    found = read_gguf(write_raw(tmp_path / "v", {"direction.1": ones()}, hint=None), BASE)
    assert found.notes == ("the file does not say for which kind of model it was made",)


def test_no_architecture_is_told(tmp_path: Path) -> None:
    name = b"direction.1"
    head = (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 8, 0, 0)
    )
    (tmp_path / "v").write_bytes(head + bytes(-len(head) % 32) + ones().tobytes())
    found = read_gguf(tmp_path / "v", BASE)
    assert found.directions[1].tolist() == [1.0] * 8
    assert "does not say that it is a control vector" in found.notes[0]


def test_every_cut_is_corrupt(tmp_path: Path) -> None:
    write_gguf(tmp_path / "v", some(1, 2), "qwen3")
    whole = (tmp_path / "v").read_bytes()
    for end in range(4, len(whole)):
        (tmp_path / "cut").write_bytes(whole[:end])
        try:
            found = read_gguf(tmp_path / "cut", BASE).directions
        except CorruptError as error:
            assert "not a whole GGUF file" in error.message
        else:  # only padding behind the last tensor may be missing
            assert end > len(whole) - 32
            assert found.keys() == {1, 2}


def test_absurd_counts_are_corrupt(tmp_path: Path) -> None:
    for counts in ((2**62, 0), (0, 2**62), (2**63 + 5, 2**63 + 5)):
        (tmp_path / "v").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(64))
        with pytest.raises(CorruptError):
            read_gguf(tmp_path / "v", BASE)


def test_an_absurd_array_is_corrupt(tmp_path: Path) -> None:
    key = b"some.array"
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    for kind in (0, 6, 8, 9):  # uint8, float32, text, array
        (tmp_path / "v").write_bytes(start + struct.pack("<IIQ", 9, kind, 2**60) + bytes(100))
        with pytest.raises(CorruptError):
            read_gguf(tmp_path / "v", BASE)


def with_array(path: Path, count: int, arch: str = "controlvector") -> Path:
    """A valid file with an array of bytes in its metadata."""
    write_raw(path, {"direction.1": ones()}, arch)
    whole = path.read_bytes()
    key = b"some.array"
    array = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 0, count) + bytes(count)
    fields = struct.unpack_from("<Q", whole, 16)[0]
    at = whole.index(b"direction.1") - 8
    start = whole[:16] + struct.pack("<Q", fields + 1) + whole[24:at] + array
    info = 8 + len(b"direction.1") + 4 + 8 + 4 + 8
    start += whole[at : at + info]
    path.write_bytes(start + bytes(-len(start) % 32) + ones().tobytes())
    return path


def test_long_arrays_are_not_walked(tmp_path: Path) -> None:
    assert list(read_gguf(with_array(tmp_path / "short", 1000), BASE).directions) == [1]
    started = time.monotonic()
    with pytest.raises(IncompatibleError, match="no control vector: it has 2000000 elements in an array"):
        read_gguf(with_array(tmp_path / "long", 2_000_000), BASE)
    with pytest.raises(IncompatibleError, match="model or adapter of the architecture `llama`"):
        read_gguf(with_array(tmp_path / "model", 2_000_000, "llama"), BASE)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("hint", "model_type", "same"),
    [
        ("qwen3", "qwen3", True),
        ("qwen3moe", "qwen3_moe", True),
        ("llama", "mistral", True),
        ("mistral", "mistral", True),
        ("qwen35", "qwen3_5_text", True),
        ("gpt-oss", "gpt_oss", True),
        ("command-r", "cohere", True),
        ("mistral", "llama", False),
        ("qwen2", "qwen3", False),
        ("gemma", "gemma2", False),
    ],
)
def test_model_types(hint: str, model_type: str, same: bool) -> None:
    assert same_model_type(hint, model_type) is same
