"""Composed weights with steering baked in, made tensor by tensor as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from personality.baking.route import BakePlan
from personality.baking.weights import Weights
from personality.manifests.errors import PersonaError
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.dtypes import TORCH_DTYPES
from personality.vectors.tensors import tensor_bytes


class BakedWeights:
    """Weights with a plan applied.

    Args:
        weights: the composed ones.
        plan: what a route changes.

    Attributes:
        plan: as given.
        specs: the composed tensors' in their order, changed ones as changed; then the new ones.
    """

    def __init__(self, weights: Weights, plan: BakePlan) -> None:
        self._weights = weights
        self.plan = plan
        changed = {name: change.spec for name, change in plan.changes.items()}
        self.specs: dict[str, TensorSpec] = {**weights.specs, **changed}

    @property
    def folder(self) -> Path:
        """Of the base: where configuration and tokenizer lie."""
        return self._weights.folder

    def tensor(self, name: str) -> Tensor:
        """A tensor as the checkpoint holds it.

        Raises:
            PersonaError: when it overflows its dtype.
        """
        change = self.plan.changes.get(name)
        if change is None:
            return self._weights.tensor(name)
        made = change.make(self._weights)
        if tuple(made.shape) != change.spec.shape or made.dtype != TORCH_DTYPES[change.spec.dtype]:
            raise ValueError(f"{name}: announced {change.spec}, made {made.dtype} {list(made.shape)}")
        if not bool(torch.isfinite(made).all()):
            raise PersonaError(
                f"baking gives NaN or infinite values in `{name}` ({change.spec.dtype})",
                "the scales are too large for these vectors: `persona scale NAME SCALE`",
            )
        return made

    def blocks_of(self, name: str) -> Iterator[memoryview]:
        """A tensor's bytes, piece by piece."""
        if name in self.plan.changes:
            return iter([tensor_bytes(self.tensor(name))])
        return self._weights.blocks_of(name)
