"""How the weights of two versions differ, by layer and module, and which changes of the recipe own it; streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from personality.composition import kernels
from personality.composition.composer import Composer
from personality.vectors.layers import layer_of
from personality.vectors.training.selection import group_of

_BLOCK_ELEMENTS = 1 << 20
"""Elements in float64 at a time."""

_ROLES = ("qkv", "q", "kv", "k", "v", "o", "gate_up", "gate", "up", "down", "in", "conv", "decay", "out")


@dataclass
class LayerDiff:
    """How a part of the weights differs from the base in two versions, and how the two changes relate.

    Attributes:
        layer: its number; None for what lies outside the layers (embeddings, final norm, output head).
        module: by meaning, such as `attention.q` or `mlp.down`; empty for all modules of the layer together.
        elements: elements of the tensors that either version touches.
        norm_before, norm_after: Euclidean norm of Δ in each version.
        norm_change: norm of Δ_after − Δ_before: what changed between them.
        cosine: of Δ_before and Δ_after, −1 to 1; None when either is zero.
        sign_flips: share of elements, nonzero in both, whose sign differs, 0 to 1; None when there are none.
        changed: share of elements whose Δ differs, 0 to 1.
        changed_rounded: the same of the weights themselves, rounded to the base's dtype: what a checkpoint shows.
    """

    layer: int | None
    module: str = ""
    elements: int = 0
    norm_before: float = 0.0
    norm_after: float = 0.0
    norm_change: float = 0.0
    cosine: float | None = None
    sign_flips: float | None = None
    changed: float = 0.0
    changed_rounded: float = 0.0


@dataclass(frozen=True)
class Part:
    """One change of the recipe, and how what it does to the weights follows from other composers' Δ.

    Its contribution is `of_change` · (Δ_after − Δ_before) + Σ weight · Δ over `terms`.

    Attributes:
        what: a behavior's name, or `composition`; several, joined, that cannot be told apart.
        of_change: weight of the whole change.
        terms: weights and composers on the same base.
        exact: whether the contributions of all parts add up to the change by construction.
    """

    what: str
    of_change: float
    terms: tuple[tuple[float, Composer], ...] = ()
    exact: bool = True

    def contributions(self, name: str, first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The change of one tensor and this part's contribution to it, float64, block by block.

        Args:
            name: of the tensor.
            first, second: its Δ in both versions, compute dtype, flat.
        """
        others = [(weight, composer.delta(name).reshape(-1)) for weight, composer in self.terms]
        for block in _blocks(first.numel()):
            change = second[block].double() - first[block].double()
            contribution = change * self.of_change
            for weight, other in others:
                contribution += other[block].double() * weight
            yield change, contribution


@dataclass(frozen=True)
class Owner:
    """How much of the change of the weights one change of the recipe accounts for.

    Attributes:
        what: a behavior's name, or `composition`.
        share: ⟨change, contribution⟩ / ‖change‖². The shares of an exact attribution add up to 1; one is negative where
            a contribution points against the change as a whole.
        norm: Euclidean norm of the contribution.
        exact: False with three or more changes and another method than `linear`: shares need not add up to 1 then.
    """

    what: str
    share: float
    norm: float
    exact: bool


@dataclass(frozen=True)
class WeightDiff:
    """How the weights of two versions differ.

    Attributes:
        layers: in order, those that neither version touches left out; what lies outside layers comes last.
        modules: the same, each layer split by module, in the order of `module_order`.
        owners: of the change, in the order of the parts; empty when nothing changed.
    """

    layers: tuple[LayerDiff, ...]
    modules: tuple[LayerDiff, ...]
    owners: tuple[Owner, ...]

    @property
    def norm_change(self) -> float:
        """Euclidean norm of the whole change."""
        return math.sqrt(sum(item.norm_change**2 for item in self.layers))


@dataclass
class _Sums:
    """Float64 sums over some tensors."""

    elements: int = 0
    before: float = 0.0
    after: float = 0.0
    change: float = 0.0
    dot: float = 0.0
    flips: int = 0
    both: int = 0
    changed: int = 0
    rounded: int = 0

    def add(self, base: Tensor, first: Tensor, second: Tensor) -> None:
        """Add a block: the base's weights and the two changes in the compute dtype, equal shapes, flat."""
        old, new = first.double(), second.double()
        self.elements += old.numel()
        self.before += float(old @ old)
        self.after += float(new @ new)
        self.dot += float(old @ new)
        change = new - old
        self.change += float(change @ change)
        both = (old != 0) & (new != 0)
        self.both += int(both.sum())
        self.flips += int((both & (old.sign() != new.sign())).sum())
        self.changed += int((change != 0).sum())
        self.rounded += int((kernels.add_to_base(base, first) != kernels.add_to_base(base, second)).sum())

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def finish(self, layer: int | None, module: str) -> LayerDiff:
        nonzero = self.before > 0 and self.after > 0
        return LayerDiff(
            layer=layer,
            module=module,
            elements=self.elements,
            norm_before=math.sqrt(self.before),
            norm_after=math.sqrt(self.after),
            norm_change=math.sqrt(self.change),
            # Two roots: the product of two small sums may underflow.
            cosine=_within(self.dot / (math.sqrt(self.before) * math.sqrt(self.after))) if nonzero else None,
            sign_flips=self.flips / self.both if self.both else None,
            changed=self.changed / self.elements if self.elements else 0.0,
            changed_rounded=self.rounded / self.elements if self.elements else 0.0,
        )


def weight_diff(before: Composer, after: Composer) -> list[LayerDiff]:
    """The layers of `weight_changes`, for those who need no more."""
    return list(weight_changes(before, after).layers)


def weight_changes(before: Composer, after: Composer, parts: Sequence[Part] = ()) -> WeightDiff:
    """Compare two versions tensor by tensor: the memory is that of a few copies of the largest tensor.

    Norms are taken before rounding to the base's dtype, so that they show the recipe and not its rounding.

    Args:
        before, after: composers on the same base.
        parts: the changes of the recipe to attribute the change of the weights to.
    """
    sums: dict[tuple[int | None, str], _Sums] = {}
    dots, squares = [0.0] * len(parts), [0.0] * len(parts)
    touched = {*before.touched, *after.touched}
    for name in (name for name in before.base.specs if name in touched):
        first, second = before.delta(name).reshape(-1), after.delta(name).reshape(-1)
        base = before.base.tensor(name).reshape(-1)
        entry = sums.setdefault((layer_of(name), group_of(name)), _Sums())
        for block in _blocks(first.numel()):
            entry.add(base[block], first[block], second[block])
        for index, part in enumerate(parts):
            for change, contribution in part.contributions(name, first, second):
                dots[index] += float(contribution @ change)
                squares[index] += float(contribution @ contribution)
    layers: dict[int | None, _Sums] = {}
    for (layer, _), entry in sums.items():
        layers[layer] = layers.get(layer, _Sums()).plus(entry)
    total = sum(entry.change for entry in layers.values())
    owners = [
        Owner(part.what, dot / total, math.sqrt(square), part.exact)
        for part, dot, square in zip(parts, dots, squares, strict=True)
        if total and square
    ]
    return WeightDiff(
        layers=tuple(layers[layer].finish(layer, "") for layer in sorted(layers, key=_last_if_none)),
        modules=tuple(
            sums[key].finish(*key)
            for key in sorted(sums, key=lambda key: (_last_if_none(key[0]), module_order(key[1])))
        ),
        owners=tuple(owners),
    )


def module_order(module: str) -> tuple[bool, str, int, str]:
    """By which modules are sorted: attention.q, .k, .v, .o; mlp.gate, .up, .down; those without parts last."""
    block, _, role = module.rpartition(".")
    return not block, block, _ROLES.index(role) if role in _ROLES else len(_ROLES), role


def _blocks(elements: int) -> Iterator[slice]:
    for start in range(0, elements, _BLOCK_ELEMENTS):
        yield slice(start, start + _BLOCK_ELEMENTS)


def _within(cosine: float) -> float:
    return max(-1.0, min(1.0, cosine))


def _last_if_none(layer: int | None) -> tuple[bool, int]:
    return layer is None, layer or 0
