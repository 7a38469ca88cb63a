"""What a steering vector does to general text that nothing was read from or calibrated on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from personality.manifests.steering_record import SideEffects
from personality.proving.dose_response import finite_exp
from personality.vectors.extraction.base_predictions import BasePredictions
from personality.vectors.steering.injection import Injection


def side_effects(model: Any, predictions: BasePredictions, acting: Sequence[Injection]) -> SideEffects:
    """Divergence and perplexity over the tokens of held-out replies that the predictions were kept of.

    Args:
        model: the base, unsteered, in evaluation mode.
        predictions: of the base at these tokens, made for the positions `response`.
        acting: the vector at its scale.
    """
    drift = predictions.drift(model, acting)
    mean, high = float(drift.kl.double().mean()), drift.kl_95
    return SideEffects(
        tokens=predictions.tokens,
        kl_mean=mean if math.isfinite(mean) else None,
        kl_95=high if math.isfinite(high) else None,
        perplexity_before=math.exp(float(predictions.nll.double().mean())),
        perplexity_after=finite_exp(float(drift.nll.double().mean())),
    )
