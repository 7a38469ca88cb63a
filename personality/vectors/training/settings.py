"""Everything that a training run depends on besides model and data."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from personality.manifests.errors import UsageError

Method = Literal["sft", "orpo"]
OptimizerName = Literal["apollo", "apollo-mini", "adamw"]
Schedule = Literal["cosine", "linear", "constant"]

_SMALL, _LARGE = 1e7, 1e9
_TINY_RATE = 2e-3
_LARGE_RATES: dict[Method, float] = {"sft": 2e-5, "orpo": 1e-5}


class TrainSettings(BaseModel):
    """Hyper-parameters of one run, as they are kept in the vector's manifest.

    Attributes:
        method: "sft" learns the chosen answers; "orpo" also raises their odds over the rejected ones.
        optimizer: "apollo", "apollo-mini" (rank 1, one scaling factor a matrix) or "adamw".
        lr: peak learning rate; None for `default_learning_rate`.
        rank: Apollo's rank, clamped to each matrix; Apollo-Mini and AdamW ignore it.
        alpha: Apollo's scale; None for sqrt(m/r), with which a rate means the same at every rank.
        update_proj_gap: steps between two projections.
        norm_growth: most that the norm of a scaled gradient may grow by from step to step.
        weight_decay: decoupled.
        max_grad_norm: gradients are clipped to this norm over all parameters; 0 for no clipping.
        batch_size: examples of a batch, general ones included.
        general_ratio: general examples for each one of the behavior; 0.25 makes one fifth of every batch.
        warmup: share of the steps in which the rate rises.
        schedule: shape of the rate after that.
        orpo_lambda: weight of the odds-ratio term (the paper's lambda).
        max_length: tokens that a dialogue may have; longer ones are refused.
        seed: of order, draw of general examples, dropout and projections.
        train_embeddings: also train input and output embeddings.
        train_norms: also train the weights of normalization layers.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Method = "orpo"
    optimizer: OptimizerName = "apollo"
    lr: float | None = Field(default=None, gt=0)
    rank: int = Field(default=256, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    update_proj_gap: int = Field(default=200, ge=1)
    norm_growth: float = Field(default=1.01, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    batch_size: int = Field(default=5, ge=1)
    general_ratio: float = Field(default=0.25, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    schedule: Schedule = "cosine"
    orpo_lambda: float = Field(default=0.1, gt=0)
    max_length: int = Field(default=2048, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)
    train_embeddings: bool = False
    train_norms: bool = False
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _fit_together(self) -> TrainSettings:
        if self.general_ratio > 0:
            # Only then can n examples and ratio·n general ones, spread evenly, be in every batch.
            least = math.ceil(1 + max(self.general_ratio, 1 / self.general_ratio) - 1e-9)
            if self.batch_size < least:
                raise ValueError(
                    f"batch_size {self.batch_size} has no room for both kinds of examples at general_ratio "
                    f"{self.general_ratio:g}: it takes at least {least}"
                )
        if self.optimizer == "apollo" and self.rank == 1:
            # |R_j| of a single random number is often near 0, and 1/|R_j| makes the step many times too long.
            raise ValueError("rank 1 is too coarse for a factor per channel: use apollo-mini, or rank 2 or more")
        if self.optimizer == "adamw" and self.alpha is not None:
            raise ValueError(f"alpha {self.alpha:g} is Apollo's scale, the optimizer is adamw")
        return self

    @property
    def effective_rank(self) -> int:
        """Rank that the optimizer gets: 1 for Apollo-Mini."""
        return 1 if self.optimizer == "apollo-mini" else self.rank


def make_settings(**values: Any) -> TrainSettings:
    """Settings from values that a user gave.

    Args:
        values: fields of `TrainSettings`; those left out keep their defaults.

    Returns:
        The settings.

    Raises:
        UsageError: a value is out of range, unknown, or contradicts another.
    """
    try:
        return TrainSettings(**values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{name} {problem['input']!r}: {text}" if name else text)
        raise UsageError(
            "training settings: " + "; ".join(problems),
            "correct the option, or the line under [training] in persona.toml",
        ) from error


def default_learning_rate(method: Method, parameters: int) -> float:
    """A rate to begin with.

    The rates for large models, 1B to 70B parameters, are those in common use: 2e-5 for SFT and 1e-5 for ORPO.
    A tiny model (up to 10M) has so few weights that the same change of behavior takes a far larger step in
    each: 2e-3, for either method, moves one with 20 examples. Between the two the rate falls
    along a straight line of logarithms, which is an interpolation and not a measurement.

    Args:
        method: objective.
        parameters: number of the model's parameters.

    Returns:
        Peak learning rate for AdamW and for Apollo with its default scale, rounded to two digits.
    """
    large = _LARGE_RATES[method]
    place = (math.log(max(parameters, 1)) - math.log(_SMALL)) / (math.log(_LARGE) - math.log(_SMALL))
    place = min(1.0, max(0.0, place))
    rate = math.exp((1 - place) * math.log(_TINY_RATE) + place * math.log(large))
    return float(f"{rate:.1e}")
