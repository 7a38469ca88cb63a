"""Storing what an extraction found: tensors, manifest, operation log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from personality.environment import tool_versions
from personality.making.contrasts import RawPairs
from personality.making.extraction_job import ExtractionJob
from personality.making.extraction_record import Choice
from personality.making.vector_records import record_vector
from personality.manifests.manifest import DataUsed, Making, Manifest
from personality.manifests.repository import Repository
from personality.manifests.steering_record import SteeringRecord
from personality.manifests.transaction import commit
from personality.vectors.extraction.passages import Pair, digest_pairs
from personality.vectors.steering.steering_file import store_steering
from personality.vectors.steering.steering_vector import SteeringVector


@dataclass(frozen=True)
class Extracted:
    """A finished extraction.

    Attributes:
        manifest: of the vector.
        new: False when the same vector was there already.
        seconds: that it took.
        notes: what a user should know.
    """

    manifest: Manifest
    new: bool
    seconds: float
    notes: tuple[str, ...]


def store_extraction(
    repository: Repository,
    job: ExtractionJob,
    raw: RawPairs,
    vector: SteeringVector,
    record: SteeringRecord,
    choice: Choice,
    started: float,
    notes: list[str],
) -> Extracted:
    """Store a vector with its record; one that was there without a proof gets the one that was made now."""
    paths = {"pairs": job.pairs, "general": job.general, "prompts": job.prompts, "when": job.when, "unless": job.unless}
    settings = job.model_dump(mode="json", exclude={"behavior", "source", *paths})
    with repository.writing():
        stored = store_steering(repository, vector)
        known = repository.behaviors().get(job.behavior)
        seconds = time.monotonic() - started
        manifest, new = record_vector(
            repository,
            job.behavior,
            repository.config().base,
            stored,
            Making(
                how="extract",
                source=job.source.label if job.source else "",
                settings={**settings, **{f"{name} file": path.name for name, path in paths.items() if path}},
                data=(_data_used(job, raw.learn),),
                tools=tool_versions(),
                seconds=round(seconds, 3),
            ),
            command=f"extract {job.behavior} --pairs {job.pairs.name}",
            steering=record,
            description=known.description if known else "",
            lineage=(job.source.vector,) if job.source else (),
            suggested_scale=(choice.scale, choice.scale) if choice.rows else None,
        )
        if not new:
            manifest = _completed(repository, manifest, record)
    return Extracted(manifest, new, seconds, tuple(notes))


def _completed(repository: Repository, known: Manifest, record: SteeringRecord) -> Manifest:
    """A vector that was stored without a proof gets the one that was made now; its tensors are the same."""
    if known.steering is None or known.steering.proof is not None or record.proof is None:
        return known
    manifest = known.model_copy(update={"steering": record})
    commit(repository, f"prove {known.label}", {f"manifests/{known.id}.json": manifest.to_bytes().decode()})
    return manifest


def _data_used(job: ExtractionJob, pairs: Sequence[Pair]) -> DataUsed:
    sides: dict[str, int] = {}
    for pair in pairs:
        if pair.side is not None:
            sides[pair.side] = sides.get(pair.side, 0) + 1
    return DataUsed(role="behavior", name=job.pairs.name, digest=digest_pairs(pairs), examples=len(pairs), sides=sides)
