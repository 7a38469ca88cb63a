"""`import` of a file of directions: a control vector of another program becomes a steering vector of this base."""

from __future__ import annotations

import time
from pathlib import Path

from personality.composition.opening import base_of
from personality.environment import tool_versions
from personality.making.vector_records import record_vector
from personality.manifests.errors import PersonaError
from personality.manifests.manifest import Making, Manifest
from personality.manifests.names import check_behavior_name
from personality.manifests.personality_record import LayerRange
from personality.manifests.repository import Repository
from personality.manifests.steering_record import Condition, Positions, SteeringRecord
from personality.manifests.tensor_file import digest_file
from personality.vectors.interop.base_shape import base_shape
from personality.vectors.interop.reading import read_directions
from personality.vectors.steering.steering_file import store_steering
from personality.vectors.steering.steering_vector import SteeringVector, listed


def import_directions(
    repository: Repository,
    behavior: str,
    path: Path,
    *,
    positions: Positions | None = None,
    layers: LayerRange | None = None,
) -> tuple[Manifest, bool, tuple[str, ...]]:
    """Store the directions of a file as a steering vector, in the file's own strength: scale 1 adds what is in it.

    Args:
        repository: where.
        behavior: the behavior that the vector is of.
        path: a control vector (GGUF), a safetensors file or a file of `torch.save`.
        positions: where it acts; None for where the file, or the program whose layout it is, lets it act.
        layers: where it acts unless a use says otherwise; None for what the file says, or else all layers in it.

    Returns:
        The manifest, which says neither proof nor calibration; whether it is new; notes on how the file was read.

    Raises:
        NotFoundError, CorruptError, IncompatibleError, UsageError: see `read_directions` and
            `ImportedDirections.steering_vector`; nothing is stored.
    """
    check_behavior_name(behavior)
    started = time.monotonic()
    base = repository.config().base
    shape = base_shape(base_of(repository).folder)
    lone = layers.first if layers is not None and layers.first == layers.last else None
    try:
        found = read_directions(path, shape, base.fingerprint, lone)
    except OSError as error:
        raise PersonaError(f"cannot read {path}: {error.strerror or error}", "check the file's permissions") from error
    vector = found.steering_vector(positions, layers)
    with repository.writing():
        manifest, new = record_vector(
            repository,
            behavior,
            base,
            store_steering(repository, vector),
            Making(
                how="import-directions",
                source=path.resolve().name,
                settings={"layout": found.source, "file": digest_file(path)},
                tools=tool_versions(),
                seconds=round(time.monotonic() - started, 3),
            ),
            command=f"import {behavior} {path.name}",
            steering=_record(vector),
        )
    return manifest, new, (*found.notes, *_where(vector, together=found.together))


def _record(vector: SteeringVector) -> SteeringRecord:
    gate = vector.gate
    condition = None if gate is None else Condition(layer=gate.layer, threshold=gate.threshold, above=gate.above)
    return SteeringRecord(positions=vector.positions, mode=vector.mode, layers=vector.layers, condition=condition)


def _where(vector: SteeringVector, *, together: bool) -> tuple[str, ...]:
    """What the user should know of layers and strength."""
    if together or len(vector.layers) == 1:
        return ()
    return (
        f"layers {listed(vector.layers)} share the strength, for such files are made to act in one layer at a time: "
        "choose it with `--layers`",
    )
