"""The magnitudes of stored vectors: counted once, and kept in a file beside each."""

from __future__ import annotations

import contextlib
import math

from personality.manifests.errors import CorruptError, PersonaError
from personality.manifests.tensor_file import TensorSpec
from personality.manifests.vector_store import MAGNITUDES_SUFFIX
from personality.vectors.magnitude_counter import MagnitudeCounter
from personality.vectors.magnitudes import Magnitudes
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import row_blocks

_BLOCK_ELEMENTS = 1 << 18


def magnitudes_of(vector: TaskVector) -> Magnitudes:
    """A stored vector's magnitudes: those kept beside it, or else counted now, and kept where that is possible."""
    path = vector.path.with_suffix(MAGNITUDES_SUFFIX)
    found = Magnitudes.load(path, _elements(vector))
    if found is None:
        found = count_magnitudes(vector)
        keep_magnitudes(vector, found)
    return found


def keep_magnitudes(vector: TaskVector, magnitudes: Magnitudes) -> None:
    """Keep a vector's magnitudes beside it, where that is possible: without them they are counted again."""
    with contextlib.suppress(PersonaError):
        magnitudes.save(vector.path.with_suffix(MAGNITUDES_SUFFIX))


def check_magnitudes(vector: TaskVector, label: str) -> None:
    """Count again, and compare with what is kept beside a vector.

    Raises:
        CorruptError: when that says something else.
    """
    path = vector.path.with_suffix(MAGNITUDES_SUFFIX)
    if path.exists() and Magnitudes.load(path, _elements(vector)) != count_magnitudes(vector):
        raise CorruptError(f"{path} is not the histogram of `{label}`", "remove that file: it is counted again")


def count_magnitudes(vector: TaskVector) -> Magnitudes:
    """Read a whole vector and count."""
    counter = MagnitudeCounter()
    for name, shape in vector.shapes.items():
        counter.begin(name, math.prod(shape))
        for start, stop in row_blocks(TensorSpec(name, "F32", shape), _BLOCK_ELEMENTS):
            counter.add(vector.rows(name, start, stop))
    return counter.result()


def _elements(vector: TaskVector) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in vector.shapes.items()}
