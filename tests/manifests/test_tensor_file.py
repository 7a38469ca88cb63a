from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.manifests.tensor_file import (
    METADATA_KEY,
    TensorFile,
    TensorSpec,
    TensorWriter,
    aligned_order,
    digest_file,
    read_metadata,
)

# What torch holds; our names and torch's dtypes, kept apart from the program's own table on purpose.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)


@st.composite
def contents(draw: st.DrawFn) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Names with dtype, shape (scalars and empty ones too) and bytes."""
    found = {}
    for name in draw(st.lists(NAMES, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        size = TensorSpec(name, dtype, shape).nbytes
        raw = draw(st.binary(min_size=size, max_size=size))
        found[name] = (dtype, shape, bytes(byte & 1 for byte in raw) if dtype == "BOOL" else raw)
    return found


def write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: Any = None) -> TensorWriter:
    specs = aligned_order([TensorSpec(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()])
    with path.open("wb") as file:
        writer = TensorWriter(file, specs, metadata)
        for spec in specs:
            writer.write(spec.name, tensors[spec.name][2])
        assert writer.finish() == hashlib.sha256(_flushed(file, path)).hexdigest()
    return writer


def _flushed(file: Any, path: Path) -> bytes:
    file.flush()
    return path.read_bytes()


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


@PROPERTY
@given(tensors=contents())
def test_the_library_reads_what_we_write(
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]], tmp_path: Path
) -> None:
    path = tmp_path / "ours.safetensors"
    write(path, tensors)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, (dtype, shape, raw) in tensors.items():
        assert found[name].dtype == DTYPES[dtype]
        assert tuple(found[name].shape) == shape
        assert raw_bytes(found[name]) == raw
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@PROPERTY
@given(
    tensors=contents(),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=3),
)
def test_we_read_what_the_library_writes(
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.safetensors"
    made = {
        name: (
            torch.frombuffer(bytearray(raw), dtype=DTYPES[dtype]).reshape(shape)
            if raw
            else torch.empty(shape, dtype=DTYPES[dtype])
        )
        for name, (dtype, shape, raw) in tensors.items()
    }
    save_file(made, path, metadata=metadata)
    file = TensorFile(path)
    assert file.metadata == (metadata or {})
    assert file.specs.keys() == tensors.keys()
    for name, (dtype, shape, raw) in tensors.items():
        assert file.specs[name] == TensorSpec(name, dtype, shape)
        assert bytes(file.bytes_of(name)) == raw
        assert file.digest_of(name) == hashlib.sha256(raw).hexdigest()


@PROPERTY
@given(tensors=contents())
def test_we_read_what_we_write(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    writer = write(path, tensors, {"b": 1, "a": [1.5, None]})
    file = TensorFile(path)
    assert file.metadata == {METADATA_KEY: '{"a":[1.5,null],"b":1}'}
    assert {name: bytes(file.bytes_of(name)) for name in file.specs} == {
        name: raw for name, (_, _, raw) in tensors.items()
    }
    assert writer.digests == {name: file.digest_of(name) for name in file.specs}
    assert digest_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bytes_are_these(tmp_path: Path) -> None:
    """Written once and for all: another process, machine or release must write the same file."""
    path = tmp_path / "file.safetensors"
    specs = [TensorSpec("a", "F32", (2,)), TensorSpec("ü", "U8", ())]
    with path.open("wb") as file:
        writer = TensorWriter(file, specs, {"z": 1, "k": 0.1})
        writer.write("a", b"\x01\x02\x03\x04\x05\x06\x07\x08")
        writer.write("ü", b"\xff")
    header = (
        '{"__metadata__":{"persona":"{\\"k\\":0.1,\\"z\\":1}"},'
        '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"ü":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + bytes(range(1, 9)) + b"\xff"


def test_tensors_stay_aligned() -> None:
    specs = [
        TensorSpec("b", "U8", (3,)),
        TensorSpec("d", "F64", (1,)),
        TensorSpec("a", "BF16", (1,)),
        TensorSpec("c", "F64", (1,)),
    ]
    assert [spec.name for spec in aligned_order(specs)] == ["d", "c", "a", "b"]


@pytest.mark.parametrize(("name", "data"), [("b", b"1234"), ("a", b"123"), ("a", b"12345")])
def test_the_writer_refuses_what_was_not_announced(tmp_path: Path, name: str, data: bytes) -> None:
    with (tmp_path / "f").open("wb") as file:
        writer = TensorWriter(file, [TensorSpec("a", "F32", (1,))])
        with pytest.raises(ValueError, match=f"expected a with 4 bytes, got {name}"):
            writer.write(name, data)


def test_the_writer_refuses_to_finish_early(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        writer = TensorWriter(file, [TensorSpec("a", "F32", (1,)), TensorSpec("b", "F32", (1,))])
        writer.write("a", b"1234")
        with pytest.raises(ValueError, match="1 tensors were announced"):
            writer.finish()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no file .*gone\.safetensors"):
        TensorFile(tmp_path / "gone.safetensors")


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_with(path: Path, header: Any, data: bytes = b"1234") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "overlapping": ({"a": entry(), "b": entry(offsets=[2, 6])}, b"123456", r"`b` \(F32 \[1\]\) claims bytes 2-6"),
    "gap": ({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12), "expected to start at 4"),
    "same bytes twice": ({"a": entry(), "b": entry()}, b"1234", "claims bytes 0-4, expected to start at 4"),
    "backwards": ({"a": entry(offsets=[4, 0])}, b"1234", "claims bytes 4-0"),
    "negative": ({"a": entry(offsets=[-4, 0])}, b"1234", "claims bytes -4-0"),
    "size and shape disagree": ({"a": entry(shape=[2])}, b"1234", r"\(F32 \[2\]\) claims bytes 0-4"),
    "huge shape": ({"a": entry(shape=[2**62, 2**62])}, b"1234", "claims bytes 0-4"),
    "too short": ({"a": entry()}, b"123", "its header promises [0-9]+ bytes, the file has"),
    "too long": ({"a": entry()}, b"12345", "its header promises [0-9]+ bytes, the file has"),
    "unknown dtype": ({"a": entry(dtype="F5")}, b"1234", "tensor `a` has the unknown dtype 'F5'"),
    "dtype is a list": ({"a": entry(dtype=["F32"])}, b"1234", "unknown dtype"),
    "negative shape": ({"a": entry(shape=[-1])}, b"1234", r"tensor `a` has the shape \[-1\]"),
    "shape is a text": ({"a": entry(shape="1")}, b"1234", "tensor `a` has the shape '1'"),
    "shape of truth values": ({"a": entry(shape=[True])}, b"1234", r"has the shape \[True\]"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, b"1234", "tensor `a` has no valid offsets"),
    "three offsets": ({"a": entry(offsets=[0, 4, 8])}, b"1234", "no valid offsets"),
    "fractional offsets": ({"a": entry(offsets=[0.5, 4])}, b"1234", "no valid offsets"),
    "infinite offsets": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}', b"1234", "no valid offsets"),
    "offsets as text": ({"a": entry(offsets=["0", "4"])}, b"1234", "no valid offsets"),
    "entry is a list": ({"a": [1, 2]}, b"1234", "no valid offsets"),
    "a name twice": (
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b"1234",
        "names a tensor twice",
    ),
    "not JSON": (b"{'a': 1}", b"", "its header is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "its header is not JSON"),
    "a number with too many digits": (b'{"a":' + b"9" * 5000 + b"}", b"", "its header is not JSON"),
    "nested without end": (b'{"a":' + b"[" * 100_000, b"", "its header is not JSON"),
    "a list": ([], b"", "its header is not an object"),
    "metadata is a list": ({"__metadata__": ["x"], "a": entry()}, b"1234", "metadata is not a table of texts"),
    "metadata holds numbers": ({"__metadata__": {"x": 1}, "a": entry()}, b"1234", "metadata is not a table of texts"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_header_is_refused(tmp_path: Path, case: str) -> None:
    header, data, message = BROKEN[case]
    path = file_with(tmp_path / "broken.safetensors", header, data)
    with pytest.raises(CorruptError, match=message) as caught:
        TensorFile(path)
    assert "broken.safetensors" in caught.value.message
    assert "fetch or rebuild the file" in caught.value.hint


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_a_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(CorruptError, match=f"it has only {size} bytes"):
        TensorFile(path)


@pytest.mark.parametrize("length", [9, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}      ")
    with pytest.raises(CorruptError, match=f"its header claims {length} bytes, the file has 16"):
        TensorFile(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncation_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "whole.safetensors"
    write(path, {"a": ("F32", (5,), bytes(20)), "b": ("BF16", (2, 2), bytes(8))})
    whole = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CorruptError, match=r"cut\.safetensors is not a whole safetensors file"):
        TensorFile(cut)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_never_escapes_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    """Any one byte of the header changed: either it still describes the file, or CorruptError says that it does not."""
    path = tmp_path / "whole.safetensors"
    write(path, {"a": ("F32", (5,), bytes(20)), "b": ("BF16", (2, 2), bytes(8))}, {"x": 1})
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 29))
    whole[place] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(whole)
    try:
        file = TensorFile(damaged)
    except CorruptError:
        return
    assert sum(len(file.bytes_of(name)) for name in file.specs) == 28


def test_writing_through_a_mapped_tensor_cannot_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write(path, {"a": ("U8", (4,), b"1234")})
    before = path.read_bytes()
    torch.frombuffer(TensorFile(path).bytes_of("a"), dtype=torch.uint8).zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_numbers_of_fewer_than_eight_bits(tmp_path: Path, dtype: str) -> None:
    """The file is whole, so "fetch it again" would be no way out."""
    path = file_with(tmp_path / "packed.safetensors", {"a": entry(dtype=dtype)}, b"1234")
    with pytest.raises(IncompatibleError, match=f"tensor `a` of .* is {dtype}: the model is quantized") as caught:
        TensorFile(path)
    assert "16-bit model" in caught.value.hint


def test_metadata_alone(tmp_path: Path) -> None:
    """The same as of the whole file, wherever in the header they are, also when the tensors are cut off."""
    path = tmp_path / "first.safetensors"
    with path.open("wb") as file:
        writer = TensorWriter(file, [TensorSpec("a", "F32", (1,))], {"kind": "task"})
        writer.write("a", bytes(4))
        writer.finish()
    assert read_metadata(path) == TensorFile(path).metadata == {"persona": '{"kind":"task"}'}
    path.write_bytes(path.read_bytes()[:-2])
    assert read_metadata(path) == {"persona": '{"kind":"task"}'}
    last = file_with(tmp_path / "last.safetensors", {"a": entry(), "__metadata__": {"x": "y"}}, b"1234")
    assert read_metadata(last) == {"x": "y"}
    assert read_metadata(file_with(tmp_path / "none.safetensors", {"a": entry()}, b"1234")) == {}


@pytest.mark.parametrize("case", ["not JSON", "not UTF-8", "metadata holds numbers", "metadata is a list", "too short"])
def test_metadata_of_what_is_damaged(tmp_path: Path, case: str) -> None:
    header, data, message = BROKEN[case]
    with pytest.raises(CorruptError, match=message):
        read_metadata(file_with(tmp_path / "broken.safetensors", header, data))
