"""Reading a job's directions: from contrasts of texts, or from what a task vector does to the activations."""

from __future__ import annotations

from typing import Any

import torch

from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.making.contrasts import RawPairs, contrast_pairs
from personality.making.derived_directions import derive_directions, derived_separation
from personality.making.extraction_job import ExtractionJob
from personality.making.extraction_record import Found
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.model import device, load_composed
from personality.vectors.extraction.directions import extract_directions
from personality.vectors.extraction.reading import Read, read_passages_alone
from personality.vectors.extraction.separation import measure_separation
from personality.vectors.steering.decoder_layers import text_config

_LONGEST = 2048


def found_directions(
    repository: Repository, job: ExtractionJob, raw: RawPairs, model: Any, tokenizer: Any
) -> list[Found]:
    """Directions of every layer, one entry for each contrast that suits the pairs; at least one.

    Raises:
        UsageError, DataError: see `contrast_pairs`.
        PersonaError: an activation is NaN or infinite.
    """
    return _derived(repository, job, raw, model, tokenizer) if job.source else _read(job, raw, model, tokenizer)


def load_for_reading(composer: Composer) -> Any:
    """A version in the dtype in which it is read: float32 on a processor; on a GPU the base's own, to fit there."""
    return load_composed(composer, composer.layer_dtype if device() == "cuda" else torch.float32)


def longest_text(job: ExtractionJob, model: Any) -> int:
    """Most tokens of a text."""
    known = getattr(text_config(model), "max_position_embeddings", None) or _LONGEST
    return job.max_length or min(_LONGEST, int(known))


def _read(job: ExtractionJob, raw: RawPairs, model: Any, tokenizer: Any) -> list[Found]:
    found = []
    for pairs in contrast_pairs(job, raw, tokenizer, longest_text(job, model)):
        extraction = extract_directions(model, pairs.learn, method=job.method, denoise=job.denoise)
        learned, tested = (measure_separation(model, part, extraction) for part in (pairs.learn, pairs.test))
        found.append(Found(pairs.context, pairs.read, extraction, learned, tested, tuple(pairs.degenerate)))
    return found


def _derived(repository: Repository, job: ExtractionJob, raw: RawPairs, model: Any, tokenizer: Any) -> list[Found]:
    """Directions of what a task vector does to the activations of the pairs' positive texts."""
    assert job.source is not None
    manifest = next(item for item in repository.manifests() if item.id == job.source.vector)
    use = Use(behavior=manifest.behavior, number=manifest.number, vector=manifest.id, scale=1.0)
    personality = Personality(base=repository.config().base, uses=(use,))
    composed = load_for_reading(composer_of(repository, personality))
    reads: tuple[Read, ...] = (job.read,) if job.read else ("decision", "response")
    found = []
    for read in reads:
        learn, test = (
            read_passages_alone(tokenizer, [pair.positive for pair in pairs], read, max_length=longest_text(job, model))
            for pairs in (raw.learn, raw.test)
        )
        extraction = derive_directions(model, composed, learn, method=job.method, denoise=job.denoise)
        learned, tested = (
            derived_separation(model, composed, readings, extraction, [pair.where for pair in pairs])
            for readings, pairs in ((learn, raw.learn), (test, raw.test))
        )
        found.append(Found("version", read, extraction, learned, tested, ()))
    return found
