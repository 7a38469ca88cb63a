"""A route: one way of adding a fixed vector after a decoder layer by weights alone; and what it would change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from personality.baking.architecture import Architecture
from personality.baking.weights import Weights
from personality.manifests.tensor_file import TensorSpec

ROUNDED = 0.02
"""Greatest part of the steering's own effect by which a route may miss it that rounds the vector with something else:
bfloat16 keeps 8 bits, 0.4%, and the routes' self-tests miss by 0.2% or less."""


@dataclass(frozen=True)
class Change:
    """A tensor that baking adds or makes anew.

    Attributes:
        spec: its dtype and shape.
        make: its content, from the composed weights; called when it is written, so that memory holds one tensor.
    """

    spec: TensorSpec
    make: Callable[[Weights], Tensor]


@dataclass(frozen=True)
class BakePlan:
    """What a route would write.

    Attributes:
        route: its name.
        config: the whole config.json.
        changes: tensors that are new or different; all others stay as composed.
        cost: what it costs, in words.
        tolerance: how far the checkpoint may be from the model with hooks, as a share of what steering changes at all
            (both as greatest |Δ log-probability|); 0 where both compute the same but for the order of additions.
        notes: what a user should know before serving it.
        dropped_by: export targets whose engine would not read what is written.
        reason: why this route was taken; filled in by `bake`.
        readable_by_transformers: whether transformers reads what is written; where it does not, it would load the
            folder without the vectors and without a word, so only the engine that is named in the notes can check it.
        serve_with: arguments of `vllm serve` without which vLLM would leave the vectors out.
    """

    route: str
    config: dict[str, Any]
    changes: Mapping[str, Change]
    cost: str
    tolerance: float = 0.0
    notes: tuple[str, ...] = ()
    dropped_by: tuple[str, ...] = ()
    reason: str = ""
    readable_by_transformers: bool = True
    serve_with: tuple[str, ...] = ()


class Route(Protocol):
    """A plug-in for architectures that take a fixed vector in the same way.

    Attributes:
        name: such as `mlp-bias`.
        model_types: whose checkpoints it is for; some of them may lack what it builds on.
        why: in words, what it makes use of.
    """

    name: str
    model_types: Collection[str]
    why: str

    def hindrance(self, architecture: Architecture) -> str:
        """Why this is no way for a base, in words; empty when it is one."""
        ...

    def plan(self, architecture: Architecture, additions: Mapping[int, Tensor]) -> BakePlan:
        """What to write so that each forward pass adds these vectors.

        Args:
            architecture: of the base; nothing hinders it.
            additions: float32 (d,) by decoder layer, representable in the base's dtype.

        Raises:
            IncompatibleError: when this base lacks what the route builds on.
        """
        ...
