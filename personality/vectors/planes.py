"""Integers as planes of bytes: the lowest bytes of all words, then the next ones: like bytes compress best together.

A plane is kept as two streams of a chunk (personality/vectors/frames.py). Where few of its bytes are not 0, the first
stream says which (personality/vectors/positions.py) and the second one holds these: a Huffman code, which is what
Zstandard has for bytes, would spend no less than a bit on every 0. Else the first is empty and the second is the plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from personality.manifests.tensor_file import DTYPE_BYTES
from personality.vectors import positions
from personality.vectors.frames import Bytes, Frames

_STREAMS = 2
_FEW = 0.25
_NOTHING = np.zeros(0, np.uint8)


def streams(dtype: str) -> int:
    """How many streams the bits of a dtype are kept as."""
    return _STREAMS * DTYPE_BYTES[dtype]


def split(words: NDArray[Any]) -> list[Bytes]:
    """The streams of all planes of unsigned integers, (n,), lowest plane first."""
    found = []
    for place in range(words.dtype.itemsize):
        plane = (words >> (8 * place)).astype(np.uint8)
        there = plane != 0
        few = np.count_nonzero(there) < _FEW * len(plane)
        found += [positions.steps(there), plane[there]] if few else [_NOTHING, plane]
    return found


def join(frames: Frames, index: int, first: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The words that `split` split.

    Args:
        frames: of the tensor.
        index: of the chunk.
        first: stream of the lowest plane.
        dtype: of the words, unsigned.
        count: of the words.

    Returns:
        A new array, (count,).

    Raises:
        CorruptError: when the chunk is damaged.
    """
    words: NDArray[Any] | None = None
    for place in range(dtype.itemsize):
        stream = first + _STREAMS * place
        there = positions.read(frames, index, stream, count)
        plane = frames.read(index, stream + 1, count if there is None else len(there))
        if plane is None:
            continue
        wide = plane.astype(dtype)
        if place:
            wide <<= 8 * place
        if there is not None:
            words = np.zeros(count, dtype) if words is None else words
            words[there] |= wide
        elif words is None:
            words = wide
        else:
            words |= wide
    return np.zeros(count, dtype) if words is None else words
