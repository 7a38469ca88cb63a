"""The figures of a forecast: of each use, each pair of uses, each layer, and of the recipe as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personality.forecast.sums import PartSums
from personality.manifests.personality_record import Use

OPPOSED = -0.1
"""Cosine from which on two vectors are said to oppose each other; see docs/check.md for what others have."""


@dataclass(frozen=True)
class UseFigures:
    """What is left of one vector in the composed change.

    Attributes:
        label, scale: of the use.
        surviving: share of the elements that it changes which survive trimming and the election of signs.
        surviving_norm: the same as a share of ‖τ‖².
        kept: ⟨Δ, s τ⟩ / ‖s τ‖²: the factor on its own direction in Δ, by the scale; 1 when nothing is lost, less
            when trimming, opposed signs or a division take of it, more when others point the same way.
        effective: kept · s: the scale at which it would act if it were alone and whole.
    """

    label: str
    scale: float
    surviving: float
    surviving_norm: float
    kept: float
    effective: float


@dataclass(frozen=True)
class PairFigures:
    """How two vectors relate, their scales' signs included.

    Attributes:
        cosine: of s_i τ_i and s_j τ_j, whole; None when one is zero there.
        overlap: of the elements that trimming leaves, Jaccard's index |A ∩ B| / |A ∪ B|.
        opposed: share of A ∩ B in which the signs differ; about a half for unrelated vectors. None without overlap.
        lost: 1 − ‖t_i + t_j‖₁ / (‖t_i‖₁ + ‖t_j‖₁) after trimming: the share of their magnitude that cancels when they
            are added; 0 to 1. TIES drops the smaller half of it and spares the other.
    """

    cosine: float | None
    overlap: float
    opposed: float | None
    lost: float


@dataclass(frozen=True)
class Pair:
    """Two uses: over the whole model, and layer by layer.

    Attributes:
        first, second: labels.
        whole: over all tensors.
        layers: by layer; None for what lies outside the layers.
    """

    first: str
    second: str
    whole: PairFigures
    layers: dict[int | None, PairFigures]

    @property
    def fights(self) -> list[int]:
        """Layers in which the two oppose each other, the most opposed first."""
        found = [
            (figures.cosine, layer)
            for layer, figures in self.layers.items()
            if layer is not None and figures.cosine is not None and figures.cosine <= OPPOSED
        ]
        return [layer for _, layer in sorted(found)]


def use_figures(uses: Sequence[Use], total: PartSums) -> list[UseFigures]:
    """Figures of every use, in order."""
    square = np.diag(total.gram)
    return [
        UseFigures(
            label=use.label,
            scale=use.scale,
            surviving=_ratio(total.surviving[i], total.whole_count[i]),
            surviving_norm=_ratio(total.surviving_square[i], square[i]),
            kept=(kept := _ratio(total.along[i], square[i])),
            effective=kept * use.scale,
        )
        for i, use in enumerate(uses)
    ]


def pairs_of(uses: Sequence[Use], total: PartSums, layers: dict[int | None, PartSums]) -> list[Pair]:
    """Every pair of uses, in order."""
    return [
        Pair(
            first=uses[i].label,
            second=uses[j].label,
            whole=_pair(total, i, j),
            layers={layer: _pair(sums, i, j) for layer, sums in layers.items()},
        )
        for i in range(len(uses))
        for j in range(i + 1, len(uses))
    ]


def strain(uses: Sequence[Use], total: PartSums) -> float:
    """‖Δ‖ by the longest ‖τ_i‖ at scale 1: how far the recipe goes beyond what any one training did; 0 without uses."""
    longest = max((math.sqrt(total.gram[i, i]) / abs(use.scale) for i, use in enumerate(uses)), default=0.0)
    return _ratio(math.sqrt(total.delta), longest)


def _pair(sums: PartSums, i: int, j: int) -> PairFigures:
    norms = math.sqrt(sums.gram[i, i] * sums.gram[j, j])
    both = sums.both[i, j]
    return PairFigures(
        cosine=float(np.clip(sums.gram[i, j] / norms, -1, 1)) if norms else None,
        overlap=_ratio(both, sums.both[i, i] + sums.both[j, j] - both),
        opposed=float(sums.opposed[i, j] / both) if both else None,
        lost=_ratio(2 * sums.lost[i, j], sums.magnitude[i] + sums.magnitude[j]),
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
