"""The optimizer and the schedule that a run's settings name."""

from __future__ import annotations

import math

import torch
from torch import nn

from personality.vectors.training.apollo import Apollo
from personality.vectors.training.settings import Schedule, TrainSettings, Weights
from personality.vectors.training.weight_update import Rounding

# How the optimizer writes steps into weights of each kind.
_ROUNDING: dict[Weights, Rounding] = {
    "float32": "nearest",
    "bf16": "nearest",
    "bf16-compensated": "compensated",
    "bf16-stochastic": "stochastic",
}


def make_optimizer(params: list[nn.Parameter], settings: TrainSettings, rate: float) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Args:
        params: what is trained.
        settings: of the run.
        rate: peak learning rate.

    Returns:
        Apollo, Apollo-Mini (one factor a matrix) or AdamW.
    """
    if settings.optimizer == "adamw":
        matrices = [p for p in params if p.ndim >= 2]
        others = [p for p in params if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)
    return Apollo(
        params,
        lr=rate,
        rank=settings.effective_rank,
        scale=settings.alpha,
        scale_type="tensor" if settings.optimizer == "apollo-mini" else "channel",
        update_proj_gap=settings.update_proj_gap,
        weight_decay=settings.weight_decay,
        norm_growth=settings.norm_growth,
        seed=settings.seed,
        weights=_ROUNDING[settings.weights],
    )


def rate_factor(step: int, *, steps: int, warmup: float, schedule: Schedule) -> float:
    """Learning rate of a step as a share of its peak.

    Runs here may have five steps, so none is spent at rate zero: warm-up begins at 1/w of the peak for w
    steps, and the last step still has a rate above 0.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: share of the steps in which the rate rises (rounded to whole steps).
        schedule: "cosine", "linear" or "constant" after that.

    Returns:
        In (0, 1] for step < steps.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
