"""How much of a behavior a run gave: examples, rate, share of general data; and how far each can be turned up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from personality.vectors.training.guard import Sign
from personality.vectors.training.presets import (
    LARGE,
    PRESETS,
    SMALL,
    Objective,
    default_learning_rate,
    phases_of,
)
from personality.vectors.training.settings import TrainSettings

_TOP_LARGE = 1e-4
_TOP_FACTOR = 10.0
_TOP_TINY_FACTOR = 2.0


@dataclass(frozen=True)
class Dose:
    """What a run gave.

    Attributes:
        examples: of the behavior.
        sides: those by side: "accept", "push_back", "unlabeled".
        rate: peak learning rate (of the first phase).
        highest_rate: up to which raising it is advised.
        general_ratio: general examples for each one of the behavior.
        sign: the guard's, when it stopped the run.
    """

    examples: int
    sides: dict[str, int]
    rate: float
    highest_rate: float
    general_ratio: float
    sign: Sign | None


def dose_of(settings: TrainSettings, sides: dict[str, int], sign: Sign | None, parameters: int) -> Dose:
    """The dose of a run.

    Args:
        settings: of the run; a missing rate is the preset's.
        sides: its examples by side.
        sign: the guard's, when it stopped the run.
        parameters: number of the model's parameters.
    """
    objective = phases_of(settings.method)[0]
    return Dose(
        examples=sum(sides.values()),
        sides=sides,
        rate=settings.rate_of(objective, parameters),
        highest_rate=highest_rate(objective, parameters, lora=settings.lora_rank is not None),
        general_ratio=settings.general_ratio,
        sign=sign,
    )


def highest_rate(objective: Objective, parameters: int, *, lora: bool = False) -> float:
    """The learning rate up to which a weak effect may be met by raising it.

    For models of 1B parameters and more it is 1e-4 (ten times the preset's for adapters, and for DPO, whose rates are
    far lower): the upper end of common use, not measured by this project. For tiny models it is twice the preset's,
    at which the playground's model began to give in (docs/sweep.md). Between the two sizes the factor follows a
    straight line of logarithms.

    Args:
        objective: of the run, or of its first phase.
        parameters: number of the model's parameters.
        lora: for the factors of adapters instead of whole weights.
    """
    preset = PRESETS[objective]
    large = _TOP_FACTOR if lora or objective == "dpo" else _TOP_LARGE / preset.rate
    place = (math.log(max(parameters, 1)) - math.log(SMALL)) / (math.log(LARGE) - math.log(SMALL))
    place = min(1.0, max(0.0, place))
    factor = math.exp((1 - place) * math.log(_TOP_TINY_FACTOR) + place * math.log(large))
    return float(f"{default_learning_rate(objective, parameters, lora=lora) * factor:.1e}")
