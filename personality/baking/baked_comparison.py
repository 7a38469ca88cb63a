"""Is a baked checkpoint the model with hooks? Engines leave out tensors that they do not know without a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from personality.builds.comparison import Agreement, agreement, log_probabilities
from personality.evaluation.scores import check_finite
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection

TOLERANCE = 1e-4
"""Greatest |Δ log-probability| (nats, float32) at which two models that compute the same count as the same."""


@dataclass(frozen=True)
class BakedComparison:
    """A reloaded checkpoint beside the composed model with hooks.

    Attributes:
        agreement: of the two.
        effect: greatest |Δ log-probability| between hooks on and off, nats.
        allowed: greatest difference at which they count as the same, nats.
    """

    agreement: Agreement
    effect: float
    allowed: float

    @property
    def same(self) -> bool:
        """Whether the checkpoint does what the hooks do."""
        difference = self.agreement.greatest_difference
        return math.isfinite(difference) and difference <= self.allowed


def compare_baked(
    baked: Tensor,
    model: Any,
    injections: Sequence[Injection],
    ids: Tensor,
    *,
    tolerance: float,
    rounding: torch.dtype,
) -> BakedComparison:
    """Compare a reloaded checkpoint's predictions with those of the model that hooks steer.

    Args:
        baked: log-probabilities of the checkpoint (rows, positions, vocabulary), which need not be in memory any more;
            of the first positions of `ids` where there are fewer.
        model: the composed model without steering.
        injections: what steers it.
        ids: the tokens that `baked` is about, (rows, positions).
        tolerance: of the route, see `BakePlan`.
        rounding: as `attach`.

    Raises:
        PersonaError: when the steered model gives NaN or infinite values, so that there is nothing to compare with.
    """
    positions = baked.shape[1]
    plain = log_probabilities(model, ids)[:, :positions]
    with steered(model, injections, rounding=rounding):
        hooked = log_probabilities(model, ids)[:, :positions]
    check_finite(hooked)
    effect = agreement(plain, hooked).greatest_difference
    return BakedComparison(agreement(baked, hooked), effect, max(TOLERANCE, tolerance * effect))
