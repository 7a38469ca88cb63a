"""The `exact` encoding: what takes the base's bits to the fine-tuned ones, so that these come back bit for bit.

The bits of a float, read as an integer whose lower bits are inverted where the sign bit is set, order as the floats do
(−0 just below 0), so that a small change of a weight is a small integer whatever its exponent. Stored is
zigzag(ordered(tuned) − ordered(base)), subtracted modulo 2^bits, in byte planes (personality/vectors/planes.py): a
fine-tune moves most weights by few units in the last place, and then the upper planes hold hardly anything.
The map is that of radix sorts on floats; zigzag is Protocol Buffers' (2d for d ≥ 0, −2d − 1 for d < 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import DTYPE_BYTES, TensorFile, TensorSpec
from personality.vectors import planes
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import COMPOSABLE, DTYPE_NAMES, INTEGERS, TORCH_DTYPES, compute_dtype
from personality.vectors.frames import CHUNK_ELEMENTS, Bytes, Frames, LastChunk, declared, header_fields
from personality.vectors.tensors import matrix_shape

ENCODING = "exact"


def header(specs: list[TensorSpec], base: str) -> dict[str, Any]:
    """What a file of this encoding says of itself.

    Args:
        specs: the fine-tuned tensors: the base's names and shapes, and their own dtypes.
        base: digest of the base's weights: relative to others, the stored bits would mean nothing.
    """
    return {"kind": "task", "encoding": ENCODING, "base": base, **header_fields(specs, CHUNK_ELEMENTS)}


class ExactVector:
    """A task vector that holds how the fine-tuned weights' bits follow from the base's.

    Safe to read from several threads at once; holds a few chunks besides what it returns.

    Args:
        file: the blobs, named like the base's tensors.
        header: dtype and shape of each fine-tuned tensor, and the size of the chunks.
        base: the base's weights; may be None as long as no rows are read.

    Attributes:
        shapes: shape of each base tensor that it changes.
        specs: the stored blobs.
        path: the file.
        tuned: dtype and shape of each fine-tuned tensor.

    Raises:
        CorruptError: when header and blobs do not fit together.
    """

    def __init__(self, file: TensorFile, header: dict[str, Any], base: Checkpoint | None) -> None:
        chunk, self.tuned = declared(file, header)
        self.shapes = {name: spec.shape for name, spec in self.tuned.items()}
        self.specs: dict[str, TensorSpec] = dict(file.specs)
        self.path = file.path
        self._base = base
        self._last = LastChunk()
        self._frames = {
            name: Frames(
                file.bytes_of(name), spec.elements, chunk, planes.streams(spec.dtype), f"`{name}` in {file.path}"
            )
            for name, spec in self.tuned.items()
        }

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of W_tuned − W_base seen as a matrix, (stop − start, columns), in the base's compute dtype.

        Raises:
            CorruptError: when a chunk is damaged.
            IncompatibleError: when the base has no such tensor.
        """
        dtype = compute_dtype(self._base_spec(name).dtype)
        found, flat = self._empty(name, start, stop, dtype)
        for begin, end, base, tuned in self._pieces(name, start, stop):
            torch.sub(tuned.to(dtype), base.to(dtype), out=flat[begin:end])
        return found

    def restored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of W_tuned itself in the base's dtype: bit for bit, or rounded once where the fine-tune's is wider.

        Args and errors as `rows`.
        """
        return self.tuned_rows(name, start, stop).to(TORCH_DTYPES[self._base_spec(name).dtype])

    def tuned_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of W_tuned in the fine-tune's own dtype, bit for bit; arguments and errors as `rows`."""
        found, flat = self._empty(name, start, stop, TORCH_DTYPES[self.tuned[name].dtype])
        for begin, end, _, tuned in self._pieces(name, start, stop):
            flat[begin:end] = tuned
        return found

    def _base_spec(self, name: str) -> TensorSpec:
        if self._base is None:
            raise ValueError("an exact vector is read with its base: open it with `base=`")
        spec = self._base.specs.get(name)
        if spec is None or spec.shape != self.shapes[name] or spec.dtype not in COMPOSABLE:
            raise IncompatibleError(
                f"the vector changes `{name}` as {list(self.shapes[name])}, the base has {spec or 'no such tensor'}",
                "it was made for another base",
            )
        return spec

    def _empty(self, name: str, start: int, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        columns = matrix_shape(self.shapes[name])[1]
        found = torch.empty(stop - start, columns, dtype=dtype)
        return found, found.reshape(-1)

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Where each chunk's share of the rows goes, and the base's and the fine-tuned elements there, flat."""
        self._base_spec(name)
        assert self._base is not None
        columns = matrix_shape(self.shapes[name])[1]
        first, last = start * columns, stop * columns
        base = self._base.tensor(name).reshape(-1)
        for index, begin, end in self._frames[name].covering(first, last):
            old = base[begin:end]
            new = self._last.get((name, index), partial(self._decoded, name, index, old))
            inner = slice(max(first - begin, 0), min(last, end) - begin)
            yield max(begin, first) - first, min(end, last) - first, old[inner], new[inner]

    def _decoded(self, name: str, index: int, base: Tensor) -> Tensor:
        """A chunk's fine-tuned elements, from the base's."""
        dtype, frames = self.tuned[name].dtype, self._frames[name]
        words = planes.join(frames, index, 0, np.dtype(f"u{DTYPE_BYTES[dtype]}"), base.numel())
        tuned = unzigzag(words)
        tuned += ordered(base.to(TORCH_DTYPES[dtype]))
        return torch.from_numpy(_flip(tuned)).view(TORCH_DTYPES[dtype])


def encoded(tuned: Tensor, base: Tensor) -> list[Bytes]:
    """The streams of one chunk.

    Args:
        tuned: fine-tuned elements, (n,), a float dtype of 16 to 64 bits.
        base: the base's elements, (n,); cast to the fine-tune's dtype they are what it is predicted from.
    """
    return planes.split(zigzag(ordered(tuned) - ordered(base.to(tuned.dtype))))


def ordered(values: Tensor) -> NDArray[Any]:
    """Floats as signed integers that order as they do, in a new array; −0 is −1."""
    return _flip(values.contiguous().view(INTEGERS[DTYPE_NAMES[values.dtype]]).numpy())


def _flip(bits: NDArray[Any]) -> NDArray[Any]:
    """All but the sign bit inverted where that is set: from floats' bits to ordered integers, and back."""
    flipped = bits >> (8 * bits.itemsize - 1)
    flipped &= np.iinfo(bits.dtype).max
    flipped ^= bits
    return flipped


def zigzag(differences: NDArray[Any]) -> NDArray[Any]:
    """Signed integers as unsigned ones of the same width, small where they are near 0."""
    sign = differences >> (8 * differences.itemsize - 1)
    return ((differences << 1) ^ sign).view(f"u{differences.itemsize}")


def unzigzag(words: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `zigzag`; `words` is overwritten."""
    sign = words & 1
    np.negative(sign, out=sign)
    words >>= 1
    words ^= sign
    return words.view(f"i{words.itemsize}")
