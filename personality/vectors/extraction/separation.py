"""Whether directions tell texts apart that they were not drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from personality.manifests.errors import IncompatibleError
from personality.vectors.extraction.capture import OnBatch, pair_activations
from personality.vectors.extraction.directions import Extraction
from personality.vectors.extraction.reading import ReadPair
from personality.vectors.steering.decoder_layers import decoder_layers, residual_width


@dataclass(frozen=True)
class Separation:
    """Projections of n pairs on the directions of L layers.

    Attributes:
        projections: float32 (n, 2, L), of the positive texts and of the negative ones, in the pairs' order.
        midpoint: float32 (L,), on whose upper side positive texts belong; of the pairs that the directions are from.
        gap: float32 (L,), mean distance of the two sides there.
        where: place of each pair.
    """

    projections: Tensor
    midpoint: Tensor
    gap: Tensor
    where: tuple[str, ...]

    @property
    def texts(self) -> int:
        """2n."""
        return 2 * len(self.where)

    @property
    def pairs(self) -> int:
        """How many pairs: n."""
        return len(self.where)

    @property
    def correct(self) -> Tensor:
        """int64 (L,): how many of the 2n texts are strictly on their side of the midpoint."""
        positive, negative = self.projections.unbind(1)
        return (positive > self.midpoint).sum(0) + (negative < self.midpoint).sum(0)

    @property
    def ordered(self) -> Tensor:
        """int64 (L,): in how many pairs the positive text projects higher than the negative one."""
        return (self._differences() > 0).sum(0)

    def flips(self, layer: int) -> list[str]:
        """Places of the pairs that point the other way in a layer: the positive text projects lower."""
        return self._places(self._differences()[:, layer] < 0)

    def near_zero(self, layer: int, share: float = 0.1) -> list[str]:
        """Places of the pairs whose texts hardly differ along a layer's direction.

        Args:
            layer: from 0.
            share: of the mean distance `gap`, below which a difference of either sign counts as none.
        """
        return self._places(self._differences()[:, layer].abs() < share * self.gap[layer])

    def _differences(self) -> Tensor:
        return self.projections[:, 0] - self.projections[:, 1]

    def _places(self, chosen: Tensor) -> list[str]:
        return [self.where[index] for index in chosen.nonzero()[:, 0].tolist()]


def measure_separation(
    model: nn.Module,
    pairs: Sequence[ReadPair],
    extraction: Extraction,
    *,
    batch_tokens: int | None = None,
    on_batch: OnBatch | None = None,
) -> Separation:
    """Project held-out pairs on directions, all layers in one pass; activations are not kept.

    Args:
        model: the one that the directions are from.
        pairs: others than the directions are from.
        extraction: directions and midpoints.
        batch_tokens: most tokens of one forward pass; None for what suits the device.
        on_batch: called after each forward pass with the numbers of texts done and of all texts.

    Raises:
        IncompatibleError: the directions have other layers or another width than the model.
        PersonaError: an activation is NaN or infinite.
    """
    shape = (len(decoder_layers(model)), residual_width(model))
    if tuple(extraction.directions.shape) != shape:
        raise IncompatibleError(
            f"directions of {tuple(extraction.directions.shape)} (layers, width), the model has {shape}",
            "extract them from this model",
        )
    projections = torch.zeros(len(pairs), 2, shape[0])
    for indices, found in pair_activations(model, pairs, batch_tokens=batch_tokens, on_batch=on_batch):
        projections[indices] = torch.einsum("nsld,ld->nsl", found, extraction.directions)
    return Separation(projections, extraction.midpoint, extraction.gap, tuple(pair.where for pair in pairs))
