"""Damaged and lying files of the chunked encodings: a `CorruptError`, and no room for what they claim."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personality.manifests.errors import CorruptError, PersonaError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorFile, TensorSpec
from personality.manifests.vector_store import storing
from personality.vectors import encoders, exact, sparse
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.encoding import Encoding
from personality.vectors.fine_tune import FineTune
from personality.vectors.task_vector import TaskVector, open_task_vector
from tests.composition.conftest import random_tensor
from tests.vectors.encoded import checkpoint, encode

ENCODINGS = [Encoding("exact"), Encoding("sparse", density=0.3)]
SHAPE = (30, 17)


@pytest.fixture(params=ENCODINGS, ids=lambda encoding: encoding.name)
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (encoders, exact, sparse):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 100)
    base = checkpoint(tmp_path / "base", {"w": random_tensor(SHAPE, 1)})
    tuned = checkpoint(tmp_path / "tuned", {"w": random_tensor(SHAPE, 1) + random_tensor(SHAPE, 2, 1e-4)})
    repository = Repository(tmp_path)
    stored, _ = encode(repository, base, FineTune(base, tuned), request.param)
    file = TensorFile(repository.vector_path(stored.id))
    return repository, base, json.loads(file.metadata["persona"]), bytes(file.bytes_of("w"))


def opened(
    repository: Repository, base: Checkpoint, header: dict[str, Any], blob: bytes, dtype: str = "U8"
) -> TaskVector:
    """A vector of this header and content, well stored: nothing but its own content is wrong with it."""
    specs = [TensorSpec("w", dtype, (len(blob),))]
    with storing(repository, {key: value for key, value in header.items() if key != "format"}, specs) as stored:
        stored.writer.write("w", blob)
    return open_task_vector(repository, stored.id, "x@1", base=base)


def read(*arguments: Any, **options: Any) -> torch.Tensor:
    return opened(*arguments, **options).rows("w", 0, SHAPE[0])


def test_what_was_stored_is_read(made: Any) -> None:
    repository, base, header, blob = made
    assert read(repository, base, header, blob).shape == SHAPE


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(made: Any, place: float, bit: int) -> None:
    """Also where the digest of the file was made to fit: in the frames' checksums, or in what they add up to."""
    repository, base, header, blob = made
    data = bytearray(blob)
    data[int(place * len(data))] ^= 1 << bit
    whole = read(repository, base, header, blob)
    try:
        found = read(repository, base, header, bytes(data))
    except CorruptError as error:
        assert "`w`" in error.message
        assert error.hint
    else:  # a bit of a frame's header that means nothing
        assert torch.equal(found, whole)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.floats(0, 1, exclude_max=True))
def test_a_cut_blob_is_noticed(made: Any, size: float) -> None:
    repository, base, header, blob = made
    with pytest.raises(CorruptError, match="damaged"):
        read(repository, base, header, blob[: int(size * len(blob))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(chunk=0), "chunks of 0 elements"),
        (lambda header: header.update(chunk=1 << 40), "chunks of 1099511627776 elements"),
        (lambda header: header.update(chunk="100"), "chunks of '100' elements"),
        (lambda header: header.update(chunk=99), "damaged"),
        (lambda header: header.update(chunk=None), "chunks of None elements"),
        (lambda header: header.update(tensors={}), "are not those that it holds"),
        (lambda header: header.update(tensors=[]), "are not those that it holds"),
        (lambda header: header["tensors"].update(v=["F32", [1]]), "are not those that it holds"),
        (lambda header: header["tensors"].update(w=["F32", [-1, -510]]), "is said to be"),
        (lambda header: header["tensors"].update(w=["F32"]), "is said to be"),
        (lambda header: header["tensors"].update(w=["I32", [30, 17]]), "is said to be"),
        (lambda header: header["tensors"].update(w=["F32", [10**9, 10**9]]), "cannot hold"),
        (lambda header: header["tensors"].update(w=["F32", [40, 17]]), "damaged"),
        (lambda header: header["tensors"].update(w=["F64", [30, 17]]), "damaged"),
        (lambda header: header["tensors"].update(w=["BF16", [30, 17]]), "damaged"),
    ],
)
def test_a_header_that_lies(made: Any, change: Callable[[dict[str, Any]], None], message: str) -> None:
    repository, base, header, blob = made
    change(header)
    tracemalloc.start()
    with pytest.raises(CorruptError, match=message):
        read(repository, base, header, blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_a_blob_that_is_not_bytes(made: Any) -> None:
    repository, base, header, blob = made
    with pytest.raises(CorruptError, match="not as bytes"):
        read(repository, base, header, blob, dtype="I8")


def chunks_of(count: int, *streams: bytes) -> bytes:
    """One chunk of these streams, compressed; the others of `count` streams are empty."""
    packed = [zstandard.ZstdCompressor().compress(stream) if stream else b"" for stream in streams]
    packed += [b""] * (count - len(packed))
    return b"".join(packed) + b"".join(len(frame).to_bytes(4, "little") for frame in packed)


def lying(made: Any, blob: bytes) -> TaskVector:
    repository, base, header, _ = made
    return opened(repository, base, {**header, "chunk": 1000}, blob)


def test_a_frame_that_promises_too_much(made: Any) -> None:
    """A quarter of a gigabyte of zeros compresses to some kilobytes; it is refused before it is unpacked."""
    vector = lying(made, chunks_of(9 if made[2]["encoding"] == "sparse" else 8, b"\0" * (1 << 28)))
    tracemalloc.start()
    with pytest.raises(CorruptError, match="promises 268435456 bytes"):
        vector.rows("w", 0, 30)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("steps", [b"\xff\xff\xff", b"\0\0\1", b"\xfe\0\1"])
def test_steps_out_of_the_chunk(made: Any, steps: bytes) -> None:
    vector = lying(made, chunks_of(9 if made[2]["encoding"] == "sparse" else 8, steps, b"\1" * len(steps)))
    with pytest.raises(CorruptError, match=r"lead to element|promises"):
        vector.rows("w", 0, 30)


def test_two_frames_where_one_should_be(made: Any) -> None:
    compressor = zstandard.ZstdCompressor()
    frame = compressor.compress(b"\1" * 510) + compressor.compress(b"\2" * 510)
    count = 9 if made[2]["encoding"] == "sparse" else 8
    sizes = [0, len(frame)] + [0] * (count - 2)
    blob = frame + b"".join(size.to_bytes(4, "little") for size in sizes)
    if count == 8:
        with pytest.raises(CorruptError, match="chunk 0"):
            lying(made, blob).rows("w", 0, 30)
    else:  # nothing is there, so that its values are never looked at
        assert not bool(lying(made, blob).rows("w", 0, 30).any())


def test_a_full_disk_while_compressing(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, base, _, _ = made
    before = sorted(repository.root.rglob("*"))

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    tuned = checkpoint(repository.root / "more", {"w": torch.ones(SHAPE)})
    with pytest.raises(PersonaError, match="No space left on device") as caught:
        encode(repository, base, FineTune(base, tuned), Encoding("exact"))
    assert "persona gc" in caught.value.hint
    after = [path for path in sorted(repository.root.rglob("*")) if "more" not in path.parts]
    assert after == before


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
def test_reading_rows_takes_a_few_chunks(encoding: Encoding, tmp_path: Path) -> None:
    """Of a tensor of 32 MiB, 100 rows; what numpy allocates is traced, and what is returned are 0.8 MB of torch's."""
    shape = (4096, 2048)
    base = checkpoint(tmp_path / "base", {"w": random_tensor(shape, 1)})
    tuned = checkpoint(tmp_path / "tuned", {"w": random_tensor(shape, 1) + random_tensor(shape, 2, 1e-4)})
    repository = Repository(tmp_path)
    tracemalloc.start()
    _, vector = encode(repository, base, FineTune(base, tuned), encoding)
    stored = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    vector.rows("w", 1000, 1100)
    read_ = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stored < 20_000_000
    assert read_ < 5_000_000
