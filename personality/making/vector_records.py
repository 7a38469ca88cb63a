"""From stored tensors to a vector of the repository: number, manifest, operation log."""

from __future__ import annotations

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.canonical import short
from personality.manifests.errors import PersonaError
from personality.manifests.manifest import Making, Manifest
from personality.manifests.names import check_behavior_name
from personality.manifests.repository import Repository
from personality.manifests.steering_record import SteeringRecord
from personality.manifests.transaction import commit, now
from personality.vectors.steering.steering_file import ENCODING, StoredSteering
from personality.vectors.stored import StoredTask


def record_vector(
    repository: Repository,
    behavior: str,
    base: BaseIdentity,
    stored: StoredTask | StoredSteering,
    making: Making,
    *,
    command: str,
    steering: SteeringRecord | None = None,
    description: str = "",
    measures: dict[str, dict[str, float]] | None = None,
    lineage: tuple[str, ...] = (),
    suggested_scale: tuple[float, float] | None = None,
) -> tuple[Manifest, bool]:
    """Write the manifest of a vector that was just stored; the caller holds the repository's lock.

    Args:
        repository: where.
        behavior: whose vector it is.
        base: what it is relative to.
        stored: the vector in the store.
        making: how it came to be.
        command: for the operation log.
        steering: of a steering vector.
        description: of the behavior.
        measures: figures before and after, by measure.
        lineage: ids of vectors that it was made from.
        suggested_scale: range in which it was found useful.

    Returns:
        The manifest, and whether it is new: making the same vector of the same behavior again gives the first one.

    Raises:
        PersonaError: when the same tensors are a vector of another behavior already.
    """
    check_behavior_name(behavior)
    manifests = repository.manifests()
    for known in manifests:
        if known.id == stored.id:
            if known.behavior == behavior:
                return known, False
            raise PersonaError(
                f"exactly these tensors are stored as `{known.label}` ({short(known.id)}) already",
                f"use that vector: `persona add {known.label}`",
            )
    number = _next_number(repository, behavior, manifests)
    manifest = Manifest(
        id=stored.id,
        behavior=behavior,
        number=number,
        description=description,
        kind="task" if isinstance(stored, StoredTask) else "steering",
        encoding=stored.encoding if isinstance(stored, StoredTask) else ENCODING,
        base=base,
        tensors=stored.tensors,
        bytes=stored.bytes,
        norm=stored.norm,
        making=making,
        rounding=stored.rounding if isinstance(stored, StoredTask) else None,
        residual=stored.residual if isinstance(stored, StoredTask) else None,
        steering=steering,
        measures=measures or {},
        lineage=lineage,
        suggested_scale=suggested_scale,
        created=now(),
    )
    commit(repository, command, {f"manifests/{manifest.id}.json": manifest.to_bytes().decode()})
    return manifest, True


def complete_lineage(repository: Repository, known: Manifest, lineage: tuple[str, ...]) -> Manifest:
    """A vector that was made before is now also made from others: the same tensors, and a lineage that says so.

    The caller holds the repository's lock.
    """
    missing = tuple(vector for vector in lineage if vector not in known.lineage)
    if not missing:
        return known
    manifest = known.model_copy(update={"lineage": (*known.lineage, *missing)})
    texts: dict[str, str | None] = {f"manifests/{known.id}.json": manifest.to_bytes().decode()}
    commit(repository, f"complete the lineage of {known.label}", texts)
    return manifest


def _next_number(repository: Repository, behavior: str, manifests: list[Manifest]) -> int:
    """One more than any number that was ever used, so that `listening@3` never comes to mean another vector."""
    used = [item.number for item in manifests if item.behavior == behavior]
    for version in repository.versions().values():
        use = version.personality.use_of(behavior)
        used += [use.number] if use else []
    return 1 + max(used, default=0)
