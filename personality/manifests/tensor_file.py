"""Safetensors files as bytes: checked headers, memory-mapped reading, streaming writing.

The safetensors library writes only what is wholly in memory and does not sync; a composed checkpoint is written
tensor by tensor, so the (small, public) format is written here. Nothing in this module knows what a tensor means.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from personality.manifests.canonical import canonical_json, digest_bytes
from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.manifests.hashed_stream import HashedStream

DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_PACKED_DTYPES = ("F4", "F6_E2M3", "F6_E3M2")
"""Several numbers share a byte: only quantized models have them."""
METADATA_KEY = "persona"
"""The one metadata key that is written: several keys are not byte-stable from process to process."""
_METADATA_FIRST = b'{"__metadata__":'
_MAX_HEADER = 100_000_000
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (safetensors' spelling) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class TensorFile:
    """A safetensors file, memory-mapped; its header is checked against the file before anything is read.

    Args:
        path: the file.

    Raises:
        NotFoundError: when there is no such file.
        CorruptError: when the header is damaged, or the file is shorter or longer than the header says.
        IncompatibleError: when it holds numbers of fewer than eight bits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if size < 8:
                    raise self._corrupt(f"it has only {size} bytes")
                # A private mapping: torch wants a writable buffer, and nothing that it did could reach the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {path}") from None
        self._data = memoryview(self._map)
        length = int.from_bytes(self._data[:8], "little")
        if length > min(_MAX_HEADER, size - 8):
            raise self._corrupt(f"its header claims {length} bytes, the file has {size}")
        self._start = 8 + length
        self.specs: dict[str, TensorSpec] = {}
        self._ranges: dict[str, tuple[int, int]] = {}
        with _no_collection():
            self._read_header(size)

    def _read_header(self, size: int) -> None:
        header = self._parse(bytes(self._data[8 : self._start]))
        self.metadata: dict[str, str] = self._metadata(header.pop("__metadata__", None))
        end = 0
        for begin, stop, spec in sorted((self._entry(*item) for item in header.items()), key=lambda entry: entry[:2]):
            if begin != end or stop - begin != spec.nbytes:
                raise self._corrupt(
                    f"tensor `{spec.name}` ({spec}) claims bytes {begin}-{stop}, expected to start at {end}"
                )
            self.specs[spec.name] = spec
            self._ranges[spec.name] = (begin, stop)
            end = stop
        if self._start + end != size:
            raise self._corrupt(f"its header promises {self._start + end} bytes, the file has {size}")

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(
            f"{self.path} is not a whole safetensors file: {what}",
            "fetch or rebuild the file; it was left untouched",
        )

    def _parse(self, raw: bytes) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                raise self._corrupt("its header names a tensor twice")
            return found

        try:
            header = json.loads(raw, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise self._corrupt(f"its header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._corrupt("its header is not an object")
        return header

    def _metadata(self, found: Any) -> dict[str, str]:
        if found is None:
            return {}
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise self._corrupt("its metadata is not a table of texts")
        return found

    def _entry(self, name: str, entry: Any) -> tuple[int, int, TensorSpec]:
        """Where a tensor begins and ends, and what it is. Models have tens of thousands: plain loops, no generators."""
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if type(offsets) is not list or len(offsets) != 2 or not (type(offsets[0]) is type(offsets[1]) is int):
            raise self._corrupt(f"tensor `{name}` has no valid offsets")
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if dtype in _PACKED_DTYPES:
            raise IncompatibleError(
                f"tensor `{name}` of {self.path} is {dtype}: the model is quantized",
                "take the 16-bit model that it was made from (its model card names it)",
            )
        if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
            raise self._corrupt(f"tensor `{name}` has the unknown dtype {dtype!r}")
        if not _is_shape(shape):
            raise self._corrupt(f"tensor `{name}` has the shape {shape!r}")
        return offsets[0], offsets[1], TensorSpec(name, dtype, tuple(shape))

    def bytes_of(self, name: str) -> memoryview:
        """The tensor's bytes, mapped and not copied."""
        begin, stop = self._ranges[name]
        return self._data[self._start + begin : self._start + stop]

    def blocks_of(self, name: str) -> Iterator[memoryview]:
        """The same piece by piece."""
        data = self.bytes_of(name)
        return (data[start : start + _BLOCK_BYTES] for start in range(0, len(data), _BLOCK_BYTES))

    def digest_of(self, name: str) -> str:
        """SHA-256 of the tensor's bytes."""
        return digest_bytes(self.bytes_of(name))


def read_metadata(path: Path) -> dict[str, str]:
    """A file's metadata, without going through its tensors where they come first, as they do in what is written here.

    Raises:
        NotFoundError, CorruptError, IncompatibleError: see `TensorFile`.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, _MAX_HEADER))
        if header.startswith(_METADATA_FIRST):
            found, _ = json.JSONDecoder().raw_decode(header.decode(), len(_METADATA_FIRST))
            if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
                return found
    return TensorFile(path).metadata


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the collector of cycles off: a header is many small containers in none, and it would go through all of them
    again and again, which doubles the time that a large header takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_shape(found: Any) -> TypeGuard[list[int]]:
    """Whether JSON data is a list of integers from 0 on."""
    if type(found) is not list:
        return False
    for number in found:  # noqa: SIM110
        if type(number) is not int or number < 0:
            return False
    return True


class TensorWriter:
    """Writes one safetensors file, tensor by tensor in the order of its specs, and hashes it on the way.

    Args:
        file: where to write, at its beginning; a stream of the caller's may write in the background.
        specs: what will be written; wider dtypes must come first so that every tensor stays aligned
            (`aligned_order` sorts so).
        metadata: JSON data for the one metadata key, or None for none.

    Attributes:
        digests: SHA-256 of each tensor that `write` was given.
    """

    def __init__(self, file: BinaryIO | HashedStream, specs: Sequence[TensorSpec], metadata: Any = None) -> None:
        self._stream = file if isinstance(file, HashedStream) else HashedStream(file)
        self._waiting = list(reversed(specs))
        self.digests: dict[str, str] = {}
        header: dict[str, Any] = {}
        # `format: pt` is what transformers looks for; our own files carry their one key instead.
        header["__metadata__"] = (
            {"format": "pt"} if metadata is None else {METADATA_KEY: canonical_json(metadata).decode()}
        )
        offset = 0
        for spec in specs:
            header[spec.name] = {
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.nbytes],
            }
            offset += spec.nbytes
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)
        self._stream.put(len(raw).to_bytes(8, "little") + raw)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write the next tensor.

        Raises:
            ValueError: when it is not the next one, or has another size than announced.
        """
        self.write_blocks(name, [data])
        self.digests[name] = digest_bytes(data)

    def write_blocks(self, name: str, blocks: Iterable[bytes | memoryview]) -> None:
        """Write the next tensor piece by piece; it gets no digest of its own.

        Raises:
            ValueError: when it is not the next one, or has another size than announced.
        """
        spec = self._waiting.pop()
        if spec.name != name:
            raise ValueError(f"expected {spec.name} with {spec.nbytes} bytes, got {name}")
        written = 0
        for block in blocks:
            view = memoryview(block).cast("B")
            written += len(view)
            self._stream.put(view)
        if written != spec.nbytes:
            raise ValueError(f"expected {spec.name} with {spec.nbytes} bytes, got {name} with {written}")

    def finish(self) -> str:
        """SHA-256 of the whole file.

        Raises:
            ValueError: when announced tensors were not written.
        """
        if self._waiting:
            raise ValueError(f"{len(self._waiting)} tensors were announced and not written")
        return self._stream.finish()


def aligned_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The same specs, wider dtypes first and otherwise in the order given."""
    return sorted(specs, key=lambda spec: -DTYPE_BYTES[spec.dtype])


def digest_file(path: Path) -> str:
    """SHA-256 of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
