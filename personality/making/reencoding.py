"""`encode`: a vector that is there already, stored once more in another encoding."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from torch import Tensor

from personality.composition.opening import base_of
from personality.composition.threshold import kth_largest_magnitude
from personality.environment import tool_versions
from personality.making.vector_records import complete_lineage, record_vector
from personality.manifests.manifest import Making, Manifest
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.encoders import Limit, OnTensor
from personality.vectors.encoding import Encoding, store_encoded
from personality.vectors.task_vector import TaskVector, open_task_vector
from personality.vectors.tensors import row_blocks
from personality.versions.recipe import find_vector

_BLOCK_ELEMENTS = 1 << 20


def encode_vector(
    repository: Repository, label: VectorLabel, encoding: Encoding, *, on_tensor: OnTensor | None = None
) -> tuple[Manifest, bool, tuple[str, ...]]:
    """Store a task vector in another encoding, as the next vector of its behavior.

    Where nothing is lost, what was measured of the old vector is said of the new one too.

    Args:
        repository: where.
        label: of the vector.
        encoding: to keep it in.
        on_tensor: told of the tensors.

    Returns:
        The new vector's manifest, whose lineage names the old one, whether it is new, and notes on how it is kept.

    Raises:
        NotFoundError, UsageError: there is no such vector, or it is a steering vector.
        IncompatibleError: see `store_encoded`.
    """
    started = time.monotonic()
    old = find_vector(repository, label)
    base = base_of(repository)
    source = open_task_vector(repository, old.id, old.label, base=base)
    limit = trim_limit(source, encoding)
    with repository.writing():
        stored = store_encoded(repository, base, source, encoding, limit=limit, on_tensor=on_tensor)
        same = stored.residual is not None and stored.residual.whole == 0
        lineage = () if stored.id == old.id else (old.id,)
        manifest, new = record_vector(
            repository,
            old.behavior,
            old.base,
            stored,
            Making(
                how="encode",
                source=old.label,
                settings=encoding.settings(),
                tools=tool_versions(),
                seconds=round(time.monotonic() - started, 3),
            ),
            command=f"encode {old.label} --as {encoding.name}",
            description=old.description,
            measures=old.measures if same else None,
            lineage=lineage,
            suggested_scale=old.suggested_scale if same else None,
        )
        return complete_lineage(repository, manifest, lineage), new, stored.notes


def trim_limit(source: TaskVector, encoding: Encoding) -> Limit | None:
    """The magnitudes from which elements survive a trim to the encoding's density; None for what is not trimmed.

    As TIES has it (docs/composition.md): the k-th largest magnitude, k = max(1, ⌊density · elements⌋), over the whole
    vector or over each tensor.
    """
    density = encoding.density
    if density is None:
        return None
    if density == 1:
        return lambda name: 0.0
    if encoding.trim_scope == "tensor":
        return lambda name: _limit(source, [name], density)
    least = _limit(source, list(source.shapes), density)
    return lambda name: least


def _limit(source: TaskVector, names: Sequence[str], density: float) -> float:
    elements = sum(math.prod(source.shapes[name]) for name in names)
    if elements == 0:
        return 0.0
    return kth_largest_magnitude(lambda: _blocks(source, names), max(1, int(density * elements)))


def _blocks(source: TaskVector, names: Sequence[str]) -> Iterator[Tensor]:
    for name in names:
        for start, stop in row_blocks(TensorSpec(name, "F32", source.shapes[name]), _BLOCK_ELEMENTS):
            yield source.rows(name, start, stop)
