"""`encode`: a vector that is there already, stored once more in another encoding."""

from __future__ import annotations

import time

from personality.composition.opening import base_of
from personality.composition.threshold import Thresholds
from personality.environment import tool_versions
from personality.making.vector_records import complete_lineage, record_vector
from personality.manifests.errors import IncompatibleError
from personality.manifests.manifest import Making, Manifest
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.vectors.encoders import Limit, OnTensor
from personality.vectors.encoding import Encoding, store_encoded
from personality.vectors.fine_tune import FineTune
from personality.vectors.kept_magnitudes import count_magnitudes
from personality.vectors.task_vector import TaskVector, open_task_vector
from personality.versions.recipe import find_vector


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
        IncompatibleError: it was made for another base; see `store_encoded` for what an encoding cannot hold.
    """
    started = time.monotonic()
    old = find_vector(repository, label)
    present = repository.config().base
    if old.base.fingerprint != present.fingerprint:
        raise IncompatibleError(
            f"`{old.label}` was made for the base {old.base}, this repository uses {present}",
            "encode it in a repository of that base",
        )
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
    magnitudes = count_magnitudes(source) if isinstance(source, FineTune) else None
    thresholds = Thresholds(source, list(source.shapes), None, magnitudes)
    if encoding.trim_scope == "tensor":
        return lambda name: thresholds.of_tensor(name, density)
    return lambda name: thresholds.of_vector(density)
