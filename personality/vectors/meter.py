"""How much of an update survives rounding to the base's dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from personality.manifests.errors import IncompatibleError

_CHUNK = 1 << 22  # elements at a time, so that the meter's float64 copies stay small


@dataclass(frozen=True)
class Survival:
    """What rounding left of an intended update, over all tensors measured.

    Attributes:
        elements: elements that were meant to change.
        changed: of these, elements whose rounded value differs from the base's.
        cosine: between applied and intended update, flattened; 1 when nothing was intended, 0 when nothing
            of it arrived.
    """

    elements: int
    changed: int
    cosine: float

    @property
    def share_changed(self) -> float:
        """Share of the elements meant to change that did; 1 when none was meant to."""
        return self.changed / self.elements if self.elements else 1.0


class UpdateMeter:
    """Adds up, tensor by tensor, what rounding does to W = base + delta.

    A bfloat16 weight keeps 8 significant bits: a change below about 1/256 of the weight is rounded away.
    Sums are float64; no tensor is kept.
    """

    def __init__(self) -> None:
        self._elements = 0
        self._changed = 0
        self._dot = 0.0
        self._applied = 0.0
        self._intended = 0.0

    def add(self, base: Tensor, delta: Tensor) -> None:
        """Measure one tensor.

        Args:
            base: weights in the dtype in which they are kept, any shape.
            delta: intended change, float32, the same shape.

        Raises:
            IncompatibleError: the shapes differ.
        """
        if base.shape != delta.shape:
            raise IncompatibleError(
                f"an update of shape {tuple(delta.shape)} for a weight of shape {tuple(base.shape)}"
            )
        old_flat, delta_flat = base.detach().reshape(-1), delta.detach().reshape(-1)
        for start in range(0, old_flat.numel(), _CHUNK):
            old = old_flat[start : start + _CHUNK]
            wanted = delta_flat[start : start + _CHUNK].float()
            new = (old.float() + wanted).to(old.dtype)
            self._elements += int((wanted != 0).sum())
            self._changed += int((new != old).sum())
            applied, intended = new.double() - old.double(), wanted.double()
            self._dot += float((applied * intended).sum())
            self._applied += float((applied * applied).sum())
            self._intended += float((intended * intended).sum())

    def result(self) -> Survival:
        """The figures so far.

        Returns:
            Over all tensors added.
        """
        return survival(self._elements, self._changed, self._dot, self._applied, self._intended)


def survival(elements: int, changed: int, dot: float, applied: float, intended: float) -> Survival:
    """The figures that follow from sums over an update.

    Args:
        elements: meant to change.
        changed: of these, that did.
        dot: sum of products of applied and intended change.
        applied: sum of squares of the applied change.
        intended: sum of squares of the intended change.

    Returns:
        With the cosine's limiting cases as `Survival` states them.
    """
    if intended == 0.0:
        cosine = 1.0
    elif applied == 0.0:
        cosine = 0.0
    else:
        cosine = min(1.0, dot / math.sqrt(applied * intended))
    return Survival(elements, changed, cosine)
