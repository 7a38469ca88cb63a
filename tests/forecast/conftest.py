"""A tiny checkpoint and vectors of given tensors, in a repository with behaviors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.forecast.figures import Pair, UseFigures, pairs_of, strain, use_figures
from personality.forecast.parts import RecipeParts
from personality.forecast.sums import PartSums, layer_sums
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition, Personality, Use
from personality.vectors.task_vector import open_task_vector
from tests.composition.conftest import Workshop

SHAPES = {"model.embed_tokens.weight": (6, 4), "model.layers.0.w.weight": (8, 4), "model.layers.1.w.weight": (4, 4)}
NAMES = tuple(SHAPES)


class Recipes(Workshop):
    """A base on disk, vectors on it, and the figures of recipes of them."""

    def parts(self, uses: list[Use], composition: Composition | None = None) -> RecipeParts:
        personality = Personality(
            base=BaseIdentity(source="base", fingerprint="0" * 64),
            composition=composition or Composition(),
            uses=tuple(sorted(uses, key=lambda use: use.behavior)),
        )
        vectors = {use.vector: open_task_vector(self.repository, use.vector, use.label) for use in uses}
        return RecipeParts(self.base, personality, vectors)

    def sums(
        self, uses: list[Use], composition: Composition | None = None
    ) -> tuple[tuple[Use, ...], PartSums, dict[int | None, PartSums]]:
        parts = self.parts(uses, composition)
        layers = layer_sums(parts.tensors(), len(parts.uses))
        return parts.uses, sum(layers.values(), PartSums.zeros(len(parts.uses))), layers

    def figures(
        self, uses: list[Use], composition: Composition | None = None
    ) -> tuple[list[UseFigures], list[Pair], float]:
        """Of the uses, the pairs and the whole."""
        own, total, layers = self.sums(uses, composition)
        return use_figures(own, total), pairs_of(own, total, layers), strain(own, total)


@pytest.fixture
def recipes(tmp_path: Path) -> Recipes:
    generator = torch.Generator().manual_seed(1)
    return Recipes(tmp_path, {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()})


def random_vector(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All elements in order of name, float64."""
    return torch.cat([tensors[name].double().reshape(-1) for name in sorted(tensors)])
