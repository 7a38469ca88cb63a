"""`import`: a fine-tuned checkpoint or a LoRA adapter becomes a vector of this base."""

from __future__ import annotations

import time
from pathlib import Path

from personality.composition.opening import base_of
from personality.environment import tool_versions
from personality.making.vector_records import record_vector
from personality.manifests.manifest import Making, Manifest
from personality.manifests.names import check_behavior_name
from personality.manifests.repository import Repository
from personality.vectors.adapter import is_adapter, store_adapter
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.difference import store_difference


def import_vector(repository: Repository, behavior: str, path: Path) -> tuple[Manifest, bool, tuple[str, ...]]:
    """Store what a fine-tune changed.

    Args:
        repository: where.
        behavior: the behavior that the vector is of.
        path: folder of a checkpoint (one file or sharded) or of a PEFT LoRA adapter, or one safetensors file's folder.

    Returns:
        The manifest, whether it is new, and notes on how the files were read.

    Raises:
        NotFoundError, CorruptError, IncompatibleError: see `store_difference` and `store_adapter`.
    """
    check_behavior_name(behavior)
    started = time.monotonic()
    base = base_of(repository)
    with repository.writing():
        if is_adapter(path):
            stored = store_adapter(repository, base, path)
        else:
            stored = store_difference(repository, base, Checkpoint(path))
        making = Making(
            how="import-lora" if stored.encoding == "low-rank" else "import-checkpoint",
            source=path.name,
            tools=tool_versions(),
            seconds=round(time.monotonic() - started, 3),
        )
        manifest, new = record_vector(
            repository,
            behavior,
            repository.config().base,
            stored,
            making,
            command=f"import {behavior} {path.name}",
        )
    return manifest, new, stored.notes
