"""Objectives with the hyper-parameters that go with each: what a run uses when nothing else is said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Method = Literal["sft", "dpo", "orpo", "sft-dpo"]
Objective = Literal["sft", "dpo", "orpo"]

SMALL, LARGE = 1e7, 1e9
"""Parameters up to which a model is tiny, and from which the rates for large models hold."""

LORA_FACTOR, TINY_LORA_FACTOR = 10.0, 5.0
"""Rates for low-rank adapters relative to those for whole weights: one of the factors starts at zero and must go
farther. The one for large models is in common use, the one for tiny models was measured on the playground."""


@dataclass(frozen=True)
class Preset:
    """The learning rates of one objective; one epoch, cosine and 10% warm-up are the same for all.

    Attributes:
        rate: peak for models of 1B to 70B parameters: the value in common use, not measured by this project.
        usual: lowest and highest peak in common use at that size.
        tiny_rate: peak for models of up to 10M parameters, measured on the playground.
        needs_rejected: whether every example needs a rejected answer.
    """

    rate: float
    usual: tuple[float, float]
    tiny_rate: float
    needs_rejected: bool


PRESETS: dict[Objective, Preset] = {
    "sft": Preset(rate=2e-5, usual=(1e-5, 2e-5), tiny_rate=2e-3, needs_rejected=False),
    "dpo": Preset(rate=5e-7, usual=(1e-7, 1e-6), tiny_rate=7e-4, needs_rejected=True),
    "orpo": Preset(rate=1e-5, usual=(5e-6, 2e-5), tiny_rate=2e-3, needs_rejected=True),
}


def phases_of(method: Method) -> tuple[Objective, ...]:
    """The objectives that a method trains with, one after the other."""
    return ("sft", "dpo") if method == "sft-dpo" else (method,)


def needs_rejected(method: Method) -> bool:
    """Whether a method's examples must be pairs."""
    return any(PRESETS[objective].needs_rejected for objective in phases_of(method))


def default_learning_rate(objective: Objective, parameters: int, *, lora: bool = False) -> float:
    """A rate to begin with.

    A tiny model has so few weights that the same change of behavior takes a far larger step in each. Between 10M and 1B
    parameters the rate falls along a straight line of logarithms, which is an interpolation and not a measurement.

    Args:
        objective: one of `PRESETS`.
        parameters: number of the model's parameters.
        lora: for the factors of adapters instead of whole weights.

    Returns:
        Peak learning rate for AdamW and for Apollo with its default scale, rounded to two digits.
    """
    preset = PRESETS[objective]
    large, tiny = preset.rate, preset.tiny_rate
    if lora:
        large, tiny = large * LORA_FACTOR, tiny * TINY_LORA_FACTOR
    place = (math.log(max(parameters, 1)) - math.log(SMALL)) / (math.log(LARGE) - math.log(SMALL))
    place = min(1.0, max(0.0, place))
    rate = math.exp((1 - place) * math.log(tiny) + place * math.log(large))
    return float(f"{rate:.1e}")
