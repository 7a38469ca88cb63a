"""A tensor in compressed chunks, so that any elements are read without decoding more than the chunks they lie in.

A tensor's elements, in row-major order, are cut into chunks of a fixed number; the last one is shorter. What an
encoding keeps of a chunk is a fixed number of byte strings (its streams), each compressed by itself. Stored is one U8
tensor:

    frames  the compressed streams of the first chunk, of the second, …, one behind the other
    sizes   uint32, little-endian: the size of each frame, in the same order

A frame is one Zstandard frame (RFC 8878) with its content's size and checksum; a size of 0 stands for a stream of
zeros, or of nothing.
"""

from __future__ import annotations

import mmap
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from personality.manifests.errors import CorruptError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorFile, TensorSpec
from personality.manifests.vector_store import storing, telling_of_full_disks
from personality.vectors.dtypes import COMPOSABLE

CHUNK_ELEMENTS = 1 << 18
"""Elements of a chunk in new files: 512 KiB of bfloat16, so that a chunk and what it is made of stay in the cache."""
_MAX_CHUNK = 1 << 24
_MAX_WINDOW = 1 << 27  # more than a chunk of any dtype; a frame that wants more is a lie
_INDEX = np.dtype("<u4")

Bytes = NDArray[np.uint8]
Decoded = TypeVar("Decoded")


class _Contexts(threading.local):
    """A thread's own compressor and decompressor, which cannot be shared, made when first used."""

    def __init__(self) -> None:
        # Noise of few values repeats itself by chance: matches of less than 7 bytes save nothing and slow decoding.
        settings = zstandard.ZstdCompressionParameters.from_level(
            1, min_match=7, write_checksum=True, write_content_size=True
        )
        self.compressor = zstandard.ZstdCompressor(compression_params=settings)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)


_contexts = _Contexts()


class LastChunk(threading.local):
    """What a thread decoded last of a vector: rows that are read in order begin where the last ones ended."""

    def __init__(self) -> None:
        self._key: tuple[str, int] | None = None
        self._chunk: Any = None

    def get(self, key: tuple[str, int], decode: Callable[[], Decoded]) -> Decoded:
        """The chunk under a tensor's name and a number, decoded unless it was the last one."""
        if self._key != key:
            self._key, self._chunk = None, None  # two at a time would be one too many
            self._chunk = decode()
            self._key = key
        found: Decoded = self._chunk
        return found


class Frames:
    """The compressed chunks of one tensor; safe to read from several threads.

    Args:
        blob: the stored bytes.
        elements: of the tensor.
        chunk: elements of a chunk.
        streams: byte strings that are kept of each chunk.
        name: of the tensor and its file, for errors.

    Raises:
        CorruptError: when sizes and bytes do not agree.
    """

    def __init__(self, blob: memoryview, elements: int, chunk: int, streams: int, name: str) -> None:
        self.elements = elements
        self.chunk = chunk
        self._streams = streams
        self._name = name
        self._blob = blob
        count = -(-elements // chunk) * streams
        room = len(blob) - count * _INDEX.itemsize
        # Nothing is allocated by what a header claims: an index that the file cannot hold ends here.
        if room < 0:
            raise self.corrupt(f"{elements} elements need {count} sizes, which {len(blob)} bytes cannot hold")
        sizes = np.frombuffer(blob, _INDEX, count, room).astype(np.int64) if count else np.zeros(0, np.int64)
        self._ends: NDArray[np.int64] = np.cumsum(sizes)
        self._starts: NDArray[np.int64] = self._ends - sizes
        if int(sizes.sum()) != room:
            raise self.corrupt(f"their sizes add up to {int(sizes.sum())} bytes, there are {room}")

    def corrupt(self, what: str) -> CorruptError:
        """The error for chunks that are not what they should be."""
        return CorruptError(
            f"the chunks of {self._name} are damaged: {what}",
            "copy the vector's file again from where it was made, or make the vector again",
        )

    def covering(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The chunks that elements `start` to `stop` lie in: number, first element, end."""
        if start < stop:
            for index in range(start // self.chunk, -(-stop // self.chunk)):
                yield index, index * self.chunk, min((index + 1) * self.chunk, self.elements)

    def read(self, index: int, stream: int, length: int, *, shorter: bool = False) -> Bytes | None:
        """One stream of a chunk.

        Args:
            index: of the chunk.
            stream: from 0.
            length: bytes that it must have.
            shorter: whether it may have fewer.

        Returns:
            Its bytes, read-only; None when they are all 0.

        Raises:
            CorruptError: when it is damaged or has another length.
        """
        place = index * self._streams + stream
        start, end = int(self._starts[place]), int(self._ends[place])
        if start == end:
            return None
        frame = self._blob[start:end]
        try:
            # The decompressor allocates what the frame promises, so that is looked at first.
            promised = zstandard.frame_content_size(frame)
            if not (0 if shorter else length) <= promised <= length:
                raise self.corrupt(f"a stream of chunk {index} promises {promised} bytes instead of {length}")
            found = _contexts.decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self.corrupt(f"chunk {index}: {error}") from error
        return np.frombuffer(found, np.uint8)


def declared(file: TensorFile, header: dict[str, Any]) -> tuple[int, dict[str, TensorSpec]]:
    """What a file of this layout says of its tensors: `chunk`, and dtype and shape by name under `tensors`.

    Returns:
        Elements of a chunk, and the tensors that the blobs stand for.

    Raises:
        CorruptError: when that is damaged, or is not what the file holds.
    """

    def damaged(what: str) -> CorruptError:
        return CorruptError(f"{file.path}: {what}", "copy the file again from where it was made")

    chunk, listed = header.get("chunk"), header.get("tensors")
    if type(chunk) is not int or not 1 <= chunk <= _MAX_CHUNK:
        raise damaged(f"chunks of {chunk!r} elements; 1 to {_MAX_CHUNK} are possible")
    if not isinstance(listed, dict) or listed.keys() != file.specs.keys():
        raise damaged("the tensors that its header lists are not those that it holds")
    specs = {}
    for name, entry in listed.items():
        match entry:
            case [str() as dtype, [*shape]] if dtype in COMPOSABLE and all(type(n) is int and n >= 0 for n in shape):
                specs[name] = TensorSpec(name, dtype, tuple(shape))
            case _:
                raise damaged(f"tensor `{name}` is said to be {entry!r}")
        if file.specs[name].dtype != "U8" or len(file.specs[name].shape) != 1:
            raise damaged(f"the chunks of `{name}` are kept as {file.specs[name]}, not as bytes")
    return chunk, specs


def header_fields(specs: Iterable[TensorSpec], chunk: int) -> dict[str, Any]:
    """What `declared` reads."""
    return {"chunk": chunk, "tensors": {spec.name: [spec.dtype, list(spec.shape)] for spec in specs}}


class Spool:
    """Compressed tensors that wait in a file without a name until all their sizes are known.

    A vector's file begins with the sizes of its tensors, which only compressing tells; compressed tensors may be too
    many for memory.

    Args:
        repository: in whose folder of vectors they wait.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._folder: Path = repository.root / "vectors"
        self._file: IO[bytes] | None = None
        self._specs: list[TensorSpec] = []

    def __enter__(self) -> Spool:
        with telling_of_full_disks(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, chunks: Iterable[Sequence[Bytes]], *, keep_zeros: bool = True) -> bool:
        """Compress a tensor and take it in.

        Args:
            name: under which it is stored.
            chunks: the streams of each chunk.
            keep_zeros: also when there is nothing in it but zeros.

        Returns:
            Whether it was taken in.

        Raises:
            PersonaError: when the disk is full.
        """
        file = self._opened()
        sizes: list[int] = []
        begin = file.tell()
        with telling_of_full_disks(self._folder):
            for streams in chunks:
                frames = [_compressed(stream) for stream in streams]
                sizes += [len(frame) for frame in frames]
                file.writelines(frames)
            if not keep_zeros and not any(sizes):
                return False  # nothing was written
            file.write(np.array(sizes, _INDEX).tobytes())
        self._specs.append(TensorSpec(name, "U8", (file.tell() - begin,)))
        return True

    def store(self, header: dict[str, Any]) -> str:
        """Store what was taken in as a vector.

        Args:
            header: what its file says of itself.

        Returns:
            The vector's id.

        Raises:
            PersonaError: when the disk is full; nothing is left behind.
        """
        file = self._opened()
        with telling_of_full_disks(self._folder):
            file.flush()
        size, begin = file.tell(), 0
        # An empty file cannot be mapped; tensors without elements need no byte.
        whole = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")
        with storing(self._repository, header, self._specs) as stored:
            for spec in self._specs:
                stored.writer.write(spec.name, whole[begin : begin + spec.nbytes])
                begin += spec.nbytes
        return stored.id

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            raise ValueError("a spool is written to inside its `with` block")
        return self._file


def _compressed(stream: Bytes) -> bytes:
    """A stream as its frame; empty when it holds nothing but zeros."""
    return _contexts.compressor.compress(stream.data) if bool(stream.any()) else b""
