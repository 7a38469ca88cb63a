"""What a method is given of one vector."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Operand:
    """One vector's part in one tensor.

    Attributes:
        vector: its id, by which operands are ordered and random masks are told apart.
        delta: τ, the base tensor's shape, compute dtype (float32 or float64).
        scale: s, finite and not 0.
        density: of this use; None for the method's.
    """

    vector: str
    delta: Tensor
    scale: float
    density: float | None = None

    @property
    def scaled(self) -> Tensor:
        """S τ: what a fine-tune at that scale differs from the base by."""
        return self.delta * self.scale

    @property
    def signed(self) -> Tensor:
        """Sign(s) τ: the direction that |s| weighs."""
        return self.delta if self.scale > 0 else -self.delta
