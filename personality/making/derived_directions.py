"""Directions from a task vector: where the composed model's activations have moved from the base's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from personality.manifests.errors import DataError, IncompatibleError
from personality.vectors.extraction.capture import OnBatch, activations
from personality.vectors.extraction.denoising import output_subspaces
from personality.vectors.extraction.directions import Extraction, Method, fit_directions
from personality.vectors.extraction.reading import Reading
from personality.vectors.extraction.separation import Separation
from personality.vectors.extraction.statistics import SAMPLES, DifferenceStatistics
from personality.vectors.steering.decoder_layers import decoder_layers, residual_width


def version_activations(
    base: nn.Module,
    composed: nn.Module,
    readings: Sequence[Reading],
    *,
    batch_tokens: int | None = None,
    on_batch: OnBatch | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Activations of the same texts in two models, a batch at a time.

    Args:
        base: causal language model of transformers.
        composed: the same with a vector in its weights.
        readings: what to read.
        batch_tokens: most tokens of one forward pass; None for what suits the device.
        on_batch: called after each batch with the numbers of texts done and of all texts.

    Yields:
        Indices of b readings, and their activations float32 (b, 2, L, d): the composed model's, then the base's.

    Raises:
        IncompatibleError: the two models have other layers or widths.
        PersonaError: an activation is NaN or infinite.
    """
    shapes = [(len(decoder_layers(model)), residual_width(model)) for model in (composed, base)]
    if shapes[0] != shapes[1]:
        raise IncompatibleError(
            f"the composed model has {shapes[0]} layers and width, the base {shapes[1]}",
            "compose the vector on the base that it was made for",
        )
    # Both go through the readings in the same batches, so that memory holds one batch of each.
    moved = activations(composed, readings, batch_tokens=batch_tokens, on_batch=on_batch)
    plain = activations(base, readings, batch_tokens=batch_tokens)
    for (indices, after), (_, before) in zip(moved, plain, strict=True):
        yield indices, torch.stack([after, before], dim=1)


def derive_directions(
    base: nn.Module,
    composed: nn.Module,
    readings: Sequence[Reading],
    *,
    method: Method = "mean",
    denoise: int | None = None,
    batch_tokens: int | None = None,
    on_batch: OnBatch | None = None,
) -> Extraction:
    """Directions of what a vector does to the activations of texts; a text in both models is a pair.

    Args:
        base, composed, batch_tokens, on_batch: as for `version_activations`.
        readings: at least two.
        method: see `Method`; `logistic` sees at most `SAMPLES` of the texts.
        denoise: project onto so many leading components of each layer's output weight in the base.

    Returns:
        As from `extract_directions`, with the composed model on the positive side.

    Raises:
        DataError: fewer than two readings, or models that do not differ there.
        IncompatibleError, PersonaError: as `version_activations`.
        UsageError: a number of components, or a model, that denoising cannot do.
    """
    if len(readings) < 2:
        raise DataError(f"{len(readings)} texts: a direction needs at least 2", "give more; some dozens are usual")
    subspaces = None if denoise is None else list(output_subspaces(base, denoise))
    samples = min(SAMPLES, len(readings)) if method == "logistic" else 0
    statistics = DifferenceStatistics(len(decoder_layers(base)), residual_width(base), samples=samples)
    for indices, found in version_activations(base, composed, readings, batch_tokens=batch_tokens, on_batch=on_batch):
        sampled = [row for row, index in enumerate(indices) if index < samples]
        statistics.add(found[:, 0], found[:, 1], sampled=sampled)
    return fit_directions(statistics, method, subspaces=subspaces)


def derived_separation(
    base: nn.Module,
    composed: nn.Module,
    readings: Sequence[Reading],
    extraction: Extraction,
    where: Sequence[str],
    *,
    batch_tokens: int | None = None,
    on_batch: OnBatch | None = None,
) -> Separation:
    """Whether derived directions tell the two models apart on texts that they were not derived from.

    Args:
        base, composed, batch_tokens, on_batch: as for `version_activations`.
        readings: others than the directions are from.
        extraction: the directions.
        where: place of each reading, for the report.

    Raises:
        IncompatibleError: the directions have other layers or another width than the models; see also
            `version_activations`.
    """
    shape = (len(decoder_layers(base)), residual_width(base))
    if tuple(extraction.directions.shape) != shape:
        raise IncompatibleError(
            f"directions of {tuple(extraction.directions.shape)} (layers, width), the models have {shape}",
            "derive them from these models",
        )
    projections = torch.zeros(len(readings), 2, shape[0])
    for indices, found in version_activations(base, composed, readings, batch_tokens=batch_tokens, on_batch=on_batch):
        projections[indices] = torch.einsum("nsld,ld->nsl", found, extraction.directions)
    return Separation(projections, extraction.midpoint, extraction.gap, tuple(where))
