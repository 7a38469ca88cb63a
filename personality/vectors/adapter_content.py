"""What a PEFT LoRA adapter changes in a base: pairs of factors, and tensors that it holds whole."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MERGE = "merge it (`model.merge_and_unload().save_pretrained(DIR)`) and `persona import` the merged checkpoint"
"""The way out for an adapter that cannot be taken as it is."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two factors and the tensor that their product changes.

    Attributes:
        target: the base's tensor.
        a: (rank, in), or (experts, rank, in) for a stack of matrices; a view of the adapter's file where possible.
        b: (out, rank), or (experts, out, rank).
        scaling: factor of the product.
        transposed: the tensor is (…, in, out) and not (…, out, in).
        names: of the two factors in the adapter.
        magnitude: name of DoRA's magnitudes in the adapter; empty for plain LoRA.
    """

    target: str
    a: Tensor
    b: Tensor
    scaling: float
    transposed: bool
    names: tuple[str, str]
    magnitude: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the change."""
        *stack, rows = self.b.shape[:-1]
        columns = self.a.shape[-1]
        return (*stack, columns, rows) if self.transposed else (*stack, rows, columns)


@dataclass(frozen=True)
class AdapterContent:
    """What an adapter changes in a base.

    Attributes:
        pairs: factors.
        saved: by tensor of the base, the adapter's tensor that takes its place.
        notes: what a user should know of how it was read.
    """

    pairs: list[Pair]
    saved: dict[str, str]
    notes: list[str]
