"""What is known of a vector at the moment it is stored, for its manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from personality.manifests.manifest import Residual, Rounding
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.kept_magnitudes import keep_magnitudes
from personality.vectors.magnitude_counter import MagnitudeCounter
from personality.vectors.meter import UpdateMeter
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import matrix_shape, row_blocks

_BLOCK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class StoredTask:
    """A task vector in the store, measured.

    Attributes:
        id: its logical digest.
        encoding: `delta`, `exact`, `sparse` or `low-rank`.
        tensors: dtype and shape of each base tensor that it changes.
        bytes: size of what is stored.
        norm: Euclidean norm of the whole vector at scale 1.
        rounding: what is lost at scale 1 when it is rounded into the base's dtype.
        notes: what a user should know of how it was read.
        residual: what it lacks of what it was made of; None where that was not asked.
    """

    id: str
    encoding: Literal["delta", "exact", "sparse", "low-rank"]
    tensors: dict[str, str]
    bytes: int
    norm: float
    rounding: Rounding
    notes: tuple[str, ...] = ()
    residual: Residual | None = None


def measure(vector: TaskVector, base: Checkpoint) -> tuple[float, Rounding]:
    """Norm of a vector, and the lost-update meter at scale 1; a block of one tensor in memory at a time.

    Its magnitudes are counted on the way, and kept beside it.
    """
    squares = 0.0
    meter = UpdateMeter()
    counter = MagnitudeCounter()
    for name in vector.shapes:
        spec = base.specs[name]
        counter.begin(name, spec.elements)
        weights = base.tensor(name).reshape(matrix_shape(spec.shape))
        for start, stop in row_blocks(spec, _BLOCK_ELEMENTS):
            rows = vector.rows(name, start, stop)
            counter.add(rows)
            delta = rows.float()
            squares += float((delta.double() ** 2).sum())
            meter.add(weights[start:stop], delta)
    keep_magnitudes(vector, counter.result())
    survival = meter.result()
    return math.sqrt(squares), Rounding(share_changed=survival.share_changed, cosine=survival.cosine)
