"""Which elements of a chunk are there, as the steps from each to the next, a byte each.

A byte of 1 to 255 is a step to the next element that is there, the first one counted from the place before the chunk;
a byte of 0 goes 255 places further and stops at none. At a density p no way to say it takes less than
−p log₂ p − (1 − p) log₂(1 − p) bits for every element of the chunk; compressed steps come near it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from personality.vectors.frames import Bytes, Frames

_FAR = 255

Positions = NDArray[np.intp]


def steps(there: NDArray[np.bool_]) -> Bytes:
    """A stream that says where a mask is set; empty where it is set nowhere."""
    places = np.flatnonzero(there)
    distances = np.diff(places, prepend=-1)
    skips = (distances - 1) // _FAR
    found = np.zeros(len(places) + int(skips.sum()), np.uint8)
    found[np.cumsum(skips + 1) - 1] = distances - _FAR * skips
    return found


def read(frames: Frames, index: int, stream: int, count: int) -> Positions | None:
    """Where the elements of a chunk are that a stream of steps names, ascending; None where it names none.

    Args:
        frames: of the tensor.
        index: of the chunk.
        stream: in it.
        count: elements of the chunk.

    Raises:
        CorruptError: when the stream is damaged or leads out of the chunk.
    """
    found = frames.read(index, stream, count, shorter=True)
    if found is None:
        return None
    stops = found != 0
    if bool(stops.all()):
        places = np.cumsum(found, dtype=np.intp)
    else:
        places = np.cumsum(np.where(stops, found, _FAR), dtype=np.intp)[stops]
    places -= 1
    if len(places) and places[-1] >= count:
        raise frames.corrupt(f"the steps of chunk {index} lead to element {places[-1]} of {count}")
    return places
