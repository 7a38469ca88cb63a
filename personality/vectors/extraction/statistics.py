"""Sums over pairs' activations: everything that directions and their report need, in memory that pairs do not grow."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from personality.manifests.errors import DataError
from personality.vectors.extraction.capture import OnBatch, pair_activations
from personality.vectors.extraction.reading import ReadPair
from personality.vectors.extraction.sketch import RANK, PrincipalSketch
from personality.vectors.steering.decoder_layers import decoder_layers, residual_width

SAMPLES: Final = 256
"""Most pairs whose differences are kept one by one, for a method that needs them."""

NO_DIFFERENCE: Final = 1e-6
"""A difference shorter than this share of the activations is rounding and has no direction."""


class DifferenceStatistics:
    """Running sums over the activations of pairs, for L layers of width d.

    With d⁺ and d⁻ the activations of a pair's texts, each sum is over the pairs and for each layer. Memory, whatever
    the number of pairs: 32·L·d bytes of float64 sums, 4·L·d·2k of the sketches of rank k, 4·L·d·s of s sampled
    differences; for 64 layers of width 5120 that is 0.2 GB with k = 64 and s = 0, and 0.5 GB with s = 256. A block of
    pairs on its way in (`capture.BLOCK`) takes 4·L·d·128 more.

    Args:
        layers: L.
        width: d.
        rank: k, components that the sketch of the differences keeps.
        samples: most differences that are kept one by one.
    """

    def __init__(self, layers: int, width: int, *, rank: int = RANK, samples: int = 0) -> None:
        self.pairs = 0
        self._positive = torch.zeros(layers, width, dtype=torch.float64)
        self._negative = torch.zeros_like(self._positive)
        self._units = torch.zeros_like(self._positive)
        self._unit_count = torch.zeros(layers, dtype=torch.float64)
        self._squares = torch.zeros(layers, dtype=torch.float64)
        self._norms = torch.zeros(layers, dtype=torch.float64)
        self.sketches = [PrincipalSketch(width, rank) for _ in range(layers)]
        self._sample = torch.zeros(samples, layers, width)
        self._sampled = 0

    def add(self, positive: Tensor, negative: Tensor, *, sampled: Sequence[int] = ()) -> None:
        """Take in a block of pairs.

        Args:
            positive, negative: float32 (c, L, d), activations of the pairs' texts; finite.
            sampled: rows whose difference is kept as well; those beyond the room for samples are not.
        """
        self.pairs += len(positive)
        # Layer by layer: in float64 a whole block of a large model would be gigabytes.
        for layer, sketch in enumerate(self.sketches):
            p, n = positive[:, layer].double(), negative[:, layer].double()
            difference = p - n
            length = difference.norm(dim=-1)
            norms = p.norm(dim=-1) + n.norm(dim=-1)
            differs = length > NO_DIFFERENCE * norms / 2
            self._positive[layer] += p.sum(0)
            self._negative[layer] += n.sum(0)
            self._units[layer] += (difference[differs] / length[differs, None]).sum(0)
            self._unit_count[layer] += differs.sum()
            self._squares[layer] += (length**2).sum()
            self._norms[layer] += norms.sum()
            sketch.add(difference)
        rows = list(sampled)[: len(self._sample) - self._sampled]
        self._sample[self._sampled : self._sampled + len(rows)] = positive[rows] - negative[rows]
        self._sampled += len(rows)

    @property
    def mean_positive(self) -> Tensor:
        """Mean activation of the positive texts, float64 (L, d)."""
        return self._positive / max(1, self.pairs)

    @property
    def mean_negative(self) -> Tensor:
        """Mean activation of the negative texts, float64 (L, d)."""
        return self._negative / max(1, self.pairs)

    @property
    def mean_difference(self) -> Tensor:
        """Mean of positive minus negative, float64 (L, d); exactly zero where it is within rounding of zero."""
        mean = self.mean_positive - self.mean_negative
        tiny = mean.norm(dim=-1) <= NO_DIFFERENCE * self.activation_norm
        return torch.where(tiny[:, None], torch.zeros_like(mean), mean)

    @property
    def activation_norm(self) -> Tensor:
        """Mean norm of the 2n activations, float64 (L,)."""
        return self._norms / max(1, 2 * self.pairs)

    @property
    def consistency(self) -> Tensor:
        """Mean cosine of two different pairs' differences, float64 (L,), between −1 and 1.

        (‖Σu‖² − n) / (n(n−1)) over the unit differences u; 0 where fewer than two pairs differ.
        """
        n = self._unit_count
        cosines = ((self._units**2).sum(-1) - n) / (n * (n - 1)).clamp_min(1)
        return torch.where(n > 1, cosines, torch.zeros_like(cosines))

    def spectrum(self, components: int) -> Tensor:
        """Shares of the differences' sum of squares along their leading components (about zero).

        Args:
            components: c, how many.

        Returns:
            float64 (L, c), decreasing, at most 1 together; zeros where there is no further component.
        """
        shares = torch.zeros(len(self.sketches), components, dtype=torch.float64)
        for layer, sketch in enumerate(self.sketches):
            values = sketch.principal(centered=False)[0][:components]
            if self._squares[layer] > 0:
                shares[layer, : len(values)] = values / self._squares[layer]
        return shares

    @property
    def sample(self) -> Tensor:
        """Differences kept one by one, float32 (s, L, d)."""
        return self._sample[: self._sampled]

    @property
    def kept_bytes(self) -> int:
        """Memory of all that is kept now."""
        sums = [self._positive, self._negative, self._units, self._sample]
        return sum(tensor.nbytes for tensor in sums) + sum(sketch.kept_bytes for sketch in self.sketches)


def gather_statistics(
    model: nn.Module,
    pairs: Sequence[ReadPair],
    *,
    samples: int = 0,
    batch_tokens: int | None = None,
    on_batch: OnBatch | None = None,
) -> DifferenceStatistics:
    """One pass over the pairs, which serves every method; the order of the pairs does not matter.

    Args:
        model: causal language model of transformers.
        pairs: at least two.
        samples: most pairs whose differences are kept one by one: all, or those first in the order of a digest of
            their tokens, which is as good as random.
        batch_tokens: most tokens of one forward pass; None for what suits the device.
        on_batch: called after each forward pass with the numbers of texts done and of all texts.

    Raises:
        DataError: fewer than two pairs.
        PersonaError: an activation is NaN or infinite.
    """
    if len(pairs) < 2:
        raise DataError(f"{len(pairs)} pairs: a direction needs at least 2", "give more pairs; some dozens are usual")
    chosen = frozenset(by_digest(pairs, seed=0)[:samples]) if samples else frozenset()
    statistics = DifferenceStatistics(len(decoder_layers(model)), residual_width(model), samples=len(chosen))
    for indices, found in pair_activations(model, pairs, batch_tokens=batch_tokens, on_batch=on_batch):
        sampled = [row for row, index in enumerate(indices) if index in chosen]
        statistics.add(found[:, 0], found[:, 1], sampled=sampled)
    return statistics


def by_digest(pairs: Sequence[ReadPair], seed: int) -> list[int]:
    """Indices of pairs in an order drawn by a seed that depends on the pairs' tokens, not on how they are listed."""
    return sorted(range(len(pairs)), key=lambda index: pair_digest(pairs[index], seed))


def pair_digest(pair: ReadPair, seed: int) -> bytes:
    """Well-spread bytes, the same for pairs of the same tokens and positions."""
    parts = [(side.ids, side.start, side.stop) for side in (pair.positive, pair.negative)]
    return hashlib.blake2b(repr((seed, parts)).encode(), digest_size=16).digest()
