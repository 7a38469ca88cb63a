"""The `sparse` encoding: only the elements of a difference that survived a trim (TIES, arXiv 2306.01708, step 1).

Of each chunk (personality/vectors/frames.py) the first stream says which elements are there, in row-major order
(personality/vectors/positions.py); the others are the byte planes of their values (personality/vectors/planes.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from personality.manifests.tensor_file import DTYPE_BYTES, TensorFile, TensorSpec
from personality.vectors import planes, positions
from personality.vectors.dtypes import DTYPE_NAMES, INTEGERS, TORCH_DTYPES
from personality.vectors.frames import CHUNK_ELEMENTS, Bytes, Frames, LastChunk, declared, header_fields
from personality.vectors.tensors import matrix_shape

ENCODING = "sparse"


def header(specs: list[TensorSpec], density: float, trim_scope: str) -> dict[str, Any]:
    """What a file of this encoding says of itself.

    Args:
        specs: names and shapes of the base's tensors, with the dtype that their values are kept in.
        density: share of the elements that the trim kept.
        trim_scope: `vector` or `tensor`: what it was the share of.
    """
    return {
        "kind": "task",
        "encoding": ENCODING,
        "density": density,
        "trim_scope": trim_scope,
        **header_fields(specs, CHUNK_ELEMENTS),
    }


class SparseVector:
    """A task vector of which only some elements are stored; all others are 0.

    Safe to read from several threads at once; holds a few chunks besides what it returns. Every tensor that the trim
    looked at is listed, also where nothing of it survived: what counts elements for a density counts them all.

    Args:
        file: the blobs, named like the base's tensors.
        header: dtype of the values and shape of each tensor, and the size of the chunks.

    Attributes:
        shapes: shape of each base tensor that it changes.
        specs: the stored blobs.
        path: the file.

    Raises:
        CorruptError: when header and blobs do not fit together.
    """

    def __init__(self, file: TensorFile, header: dict[str, Any]) -> None:
        chunk, self._dense = declared(file, header)
        self.shapes = {name: spec.shape for name, spec in self._dense.items()}
        self.specs: dict[str, TensorSpec] = dict(file.specs)
        self.path = file.path
        self._last = LastChunk()
        self._frames = {
            name: Frames(
                file.bytes_of(name), spec.elements, chunk, 1 + planes.streams(spec.dtype), f"`{name}` in {file.path}"
            )
            for name, spec in self._dense.items()
        }

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor seen as a matrix, (stop − start, columns), in the dtype of the values.

        Raises:
            CorruptError: when a chunk is damaged.
        """
        columns = matrix_shape(self.shapes[name])[1]
        first, last = start * columns, stop * columns
        found = torch.zeros(stop - start, columns, dtype=TORCH_DTYPES[self._dense[name].dtype])
        words = found.reshape(-1).view(INTEGERS[self._dense[name].dtype]).numpy()
        for index, begin, end in self._frames[name].covering(first, last):
            places, values = self._last.get((name, index), partial(self._decoded, name, index, end - begin))
            if begin < first or end > last:
                inside = slice(*np.searchsorted(places, (first - begin, last - begin)))
                places, values = places[inside], values[inside]
            words[places + (begin - first)] = values
        return found

    def _decoded(self, name: str, index: int, count: int) -> tuple[positions.Positions, NDArray[Any]]:
        """Places within a chunk, ascending, and the bits of the values there."""
        dtype, frames = self._dense[name].dtype, self._frames[name]
        places = positions.read(frames, index, 0, count)
        if places is None:
            return np.zeros(0, np.intp), np.zeros(0, f"i{DTYPE_BYTES[dtype]}")
        values = planes.join(frames, index, 1, np.dtype(f"u{DTYPE_BYTES[dtype]}"), len(places))
        return places, values.view(f"i{DTYPE_BYTES[dtype]}")


def encoded(values: Tensor, kept: Tensor) -> list[Bytes]:
    """The streams of one chunk.

    Args:
        values: elements, (n,), in the dtype that they are kept in.
        kept: which of them, (n,), bool.
    """
    chosen = values[kept]
    words = chosen.view(INTEGERS[DTYPE_NAMES[chosen.dtype]]).numpy()
    return [positions.steps(kept.numpy()), *planes.split(words.view(f"u{words.itemsize}"))]
