"""Everything that a training run depends on besides model and data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from personality.manifests.errors import UsageError
from personality.vectors.training.presets import Method, Objective, default_learning_rate, phases_of

OptimizerName = Literal["apollo", "apollo-mini", "adamw"]
Schedule = Literal["cosine", "linear", "constant"]
Weights = Literal["float32", "bf16-compensated", "bf16-stochastic", "bf16"]
Context = Literal["full", "frozen"]

# Settings that only some objectives have.
_OWN: dict[str, Objective] = {"orpo_lambda": "orpo", "dpo_beta": "dpo"}
_TWO_PHASES = ("dpo_lr", "sft_share")


class TrainSettings(BaseModel):
    """Hyper-parameters of one run, as they are kept in the vector's manifest.

    Attributes:
        method: "sft" learns the chosen answers; "orpo" also raises their odds over the rejected ones; "dpo" raises
            their probability relative to the rejected ones, measured from the base; "sft-dpo" does the one on the
            first examples and then the other on the rest.
        optimizer: "apollo", "apollo-mini" (rank 1, one scaling factor a matrix) or "adamw".
        lr: peak learning rate (of the SFT phase in "sft-dpo"); None for the preset's.
        dpo_lr: peak learning rate of the DPO phase in "sft-dpo"; None for the preset's.
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
        orpo_lambda: weight of ORPO's odds-ratio term (the paper's lambda).
        dpo_beta: DPO's beta: how much a distance from the reference counts.
        sft_share: share of the behavior's examples that the SFT phase of "sft-dpo" gets.
        max_length: tokens that a dialogue may have; longer ones are refused.
        seed: of order, draw of general examples, dropout and projections.
        train_embeddings: also train input and output embeddings.
        train_norms: also train the weights of normalization layers.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        weights: how trained weights are kept: in float32, or in bfloat16 to save memory, with what rounding loses
            carried along ("bf16-compensated"), rounded without bias ("bf16-stochastic") or lost ("bf16").
        context: "frozen" lets gradients flow through the answers only, on top of prompts computed without them.
        only: groups of parameters to train, such as "attention.q" or "gdn"; empty for all but embeddings and norms.
        layers: layers to train, such as "10-20"; None for all.
        lora_rank: train low-rank adapters of this rank instead of the weights themselves.
        lora_alpha: scale of the adapters times their rank; None for twice the rank.
        guard: watch for collapse, stop at the first sign and keep the last good state.
        check_every: steps between two checkups, each followed by a checkpoint; None for five a phase.
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
    dpo_lr: float | None = Field(default=None, gt=0)
    orpo_lambda: float = Field(default=0.1, gt=0)
    dpo_beta: float = Field(default=0.01, gt=0)
    sft_share: float = Field(default=0.5, gt=0, lt=1)
    max_length: int = Field(default=2048, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)
    train_embeddings: bool = False
    train_norms: bool = False
    gradient_checkpointing: bool = False
    weights: Weights = "float32"
    context: Context = "full"
    only: tuple[str, ...] = ()
    layers: str | None = None
    lora_rank: int | None = Field(default=None, ge=1)
    lora_alpha: float | None = Field(default=None, gt=0)
    guard: bool = True
    check_every: int | None = Field(default=None, ge=1)

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
        for problem in self._contradictions():
            raise ValueError(problem)
        return self

    def _contradictions(self) -> list[str]:
        """Settings that say one thing and its opposite, or something about what is not there."""
        given = self.model_fields_set
        kept = {name for name in given if getattr(self, name) != type(self).model_fields[name].default}
        found = [
            f"{name} {getattr(self, name):g} belongs to {objective}, the method is {self.method}"
            for name, objective in _OWN.items()
            if name in kept and objective not in phases_of(self.method)
        ]
        found += [
            f"{name} {getattr(self, name):g} belongs to sft-dpo, the method is {self.method}"
            for name in _TWO_PHASES
            if name in kept and self.method != "sft-dpo"
        ]
        if self.context == "frozen" and self.gradient_checkpointing:
            found.append("gradient_checkpointing drops the cache that a frozen context needs: use one of the two")
        if self.lora_rank is None and self.lora_alpha is not None:
            found.append(f"lora_alpha {self.lora_alpha:g} without lora_rank: there is no adapter to scale")
        if self.lora_rank is not None:
            if self.weights not in ("float32", "bf16"):
                found.append(
                    f"weights {self.weights}: an adapter's factors are always float32, only the base can be bf16"
                )
            if self.train_embeddings or self.train_norms:
                found.append(
                    "an adapter has factors of linear layers only: embeddings and norms cannot be trained with it"
                )
        elif self.weights != "float32" and self.optimizer == "adamw":
            found.append(f"weights {self.weights}: only apollo and apollo-mini keep count of what rounding loses")
        return found

    def rate_of(self, objective: Objective, parameters: int) -> float:
        """Peak learning rate of one phase: what was asked for, or the preset's.

        Args:
            objective: of the phase.
            parameters: number of the model's parameters.
        """
        given = self.dpo_lr if self.method == "sft-dpo" and objective == "dpo" else self.lr
        return given or default_learning_rate(objective, parameters, lora=self.lora_rank is not None)

    def at_rate(self, rate: float, parameters: int) -> TrainSettings:
        """The same settings at another peak rate; a second phase's rate goes up and down with the first's.

        Args:
            rate: of the first phase.
            parameters: number of the model's parameters.
        """
        first, *second = phases_of(self.method)
        values: dict[str, Any] = {"lr": rate}
        if second:
            factor = rate / self.rate_of(first, parameters)
            values["dpo_lr"] = float(f"{self.rate_of(second[0], parameters) * factor:.3g}")
        return self.model_copy(update=values)

    @property
    def effective_rank(self) -> int:
        """Rank that the optimizer gets: 1 for Apollo-Mini."""
        return 1 if self.optimizer == "apollo-mini" else self.rank


def fitting(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A repository's defaults overlaid with what a user gave.

    Defaults that belong to another method are left out, the learning rate among them: a good rate for one objective, or
    for whole weights, says nothing about another, or about adapters.

    Args:
        defaults: fields of `TrainSettings` from `persona.toml`.
        given: fields from the command line; they win, and are never left out.
    """
    usual: Method = defaults.get("method", TrainSettings.model_fields["method"].default)
    method: Method = given.get("method", usual)
    other = {name for name, objective in _OWN.items() if objective not in phases_of(method)}
    if method != "sft-dpo":
        other |= set(_TWO_PHASES)
    if method != usual or given.get("lora_rank") != defaults.get("lora_rank"):
        other.add("lr")
    return {name: value for name, value in defaults.items() if name not in other} | dict(given)


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
