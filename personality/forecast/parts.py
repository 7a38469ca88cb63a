"""A recipe taken apart, tensor by tensor: each use alone, whole and trimmed, and what becomes of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from personality.composition.composer import Composer
from personality.manifests.personality_record import Composition, Personality, Use
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import TaskVector

DIAGNOSTIC_DENSITY = 0.2
"""Density at which the vectors of a `linear` recipe are trimmed, to see where their weight lies."""


def density_of(composition: Composition) -> float:
    """The density at which a recipe is taken apart, where a use has none of its own."""
    return composition.density if composition.method == "ties" else DIAGNOSTIC_DENSITY


@dataclass(frozen=True)
class TensorParts:
    """One tensor of the base and every use's part in it; all float32 (float64 for a float64 base), flat.

    Attributes:
        name: of the tensor.
        base: the base's weights (elements,), in its own dtype.
        whole: s_i τ_i of each use, in the order of `RecipeParts.uses`.
        trimmed: s_i trim(τ_i) of each use.
        elected: Σ of what survives TIES at scale-preserving settings (`sum`, λ = 1): its sign is the elected one.
        delta: Δ of the recipe as it stands.
    """

    name: str
    base: Tensor
    whole: tuple[Tensor, ...]
    trimmed: tuple[Tensor, ...]
    elected: Tensor
    delta: Tensor


class RecipeParts:
    """Reads a recipe's parts; holds the parts of one tensor at a time (2 n + 2 copies of it for n uses).

    Args:
        base: the base's weights.
        personality: the recipe. Its steering vectors and uses at scale 0 have no part in the weights.
        vectors: the task vector of each use that changes weights, by vector id.

    Raises:
        IncompatibleError: see `Composer`.
    """

    def __init__(self, base: Checkpoint, personality: Personality, vectors: dict[str, TaskVector]) -> None:
        self.base = base
        self.uses: tuple[Use, ...] = tuple(use for use in personality.uses if use.scale and use.vector in vectors)
        given = personality.composition
        plain = Composition(method="ties", density=density_of(given), trim_scope=given.trim_scope)

        def composer(uses: Sequence[Use], composition: Composition) -> Composer:
            recipe = Personality(base=personality.base, composition=composition, uses=tuple(uses))
            return Composer(base, recipe, vectors)

        self._whole = [composer([use], Composition()) for use in self.uses]
        self._trimmed = [composer([use], plain) for use in self.uses]
        self._elected = composer(self.uses, plain)
        self._delta = composer(self.uses, given)

    def tensors(self, on_tensor: Callable[[int, int, str], None] | None = None) -> Iterator[TensorParts]:
        """The tensors that the recipe changes, in the base's order.

        Args:
            on_tensor: called before each with its index, the number of tensors and its name.
        """
        names = self._delta.touched
        for index, name in enumerate(names):
            if on_tensor:
                on_tensor(index, len(names), name)
            yield TensorParts(
                name,
                self.base.tensor(name).reshape(-1),
                tuple(item.delta(name).reshape(-1) for item in self._whole),
                tuple(item.delta(name).reshape(-1) for item in self._trimmed),
                self._elected.delta(name).reshape(-1),
                self._delta.delta(name).reshape(-1),
            )
