"""Steering against task vectors: whether a direction pushes where a change of weights pushes, or back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from personality.changing_model import ChangingModel
from personality.evaluation.measure import messages
from personality.evaluation.suite import Probe
from personality.manifests.personality_record import Personality
from personality.manifests.steering_record import Mode
from personality.model import threads_for
from personality.vectors.extraction.capture import activations
from personality.vectors.extraction.reading import Reading
from personality.vectors.extraction.spans import prompt_ids
from personality.vectors.steering.injection import Injection
from personality.vectors.training.tokens import ANY_LENGTH

PROMPT_ROWS = 16
"""Rows of each probe whose prompts are read."""


@dataclass(frozen=True)
class SteeringAgainst:
    """A steering vector's direction in a layer, and what a task vector does to the activations there.

    Attributes:
        steering, task: labels, such as `warm@2`.
        layer: after which the direction acts.
        mode: how it acts.
        cosine: of the direction (the sign of its scale included) and the mean shift that the task vector, alone at its
            scale, makes at the prompts' last tokens. 1: both push the same way; −1: one undoes the other.
        share: length of the shift along the direction by the length of what steering adds there: how much of it the
            task vector undoes (below 0) or repeats.
        chance: three standard deviations of the cosine of two random directions of this width, 3/√d.
    """

    steering: str
    task: str
    layer: int
    mode: Mode
    cosine: float
    share: float
    chance: float


def steering_against(
    model: ChangingModel, personality: Personality, injections: Sequence[Injection], probes: Sequence[Probe]
) -> list[SteeringAgainst]:
    """Compare each direction with each task vector, in the layers where steering acts.

    What a change of weights does to the residual stream is known only by running it: the columns of its output matrices
    span nearly all of a layer's space, and their signs depend on what comes in. So the prompts go through the base
    and through the base with each task vector alone: two short forward passes, and no reply.

    Args:
        model: of the repository.
        personality: the recipe.
        injections: what its steering vectors do.
        probes: whose prompts are read; at most 16 rows of each.

    Returns:
        One for each direction and task vector, in order of label and layer; empty without prompts.

    Raises:
        PersonaError: an activation is NaN or infinite.
        DataError: the chat template refuses a prompt.
    """
    steered = {item.label for item in injections}
    tasks = [use for use in personality.uses if use.scale and use.label not in steered]
    if not tasks or not injections or not any(probe.rows for probe in probes):
        return []
    base = mean_states(model, personality.model_copy(update={"uses": ()}), probes)  # (L, d)
    found = []
    for use in tasks:
        shift = mean_states(model, personality.model_copy(update={"uses": (use,)}), probes) - base
        for item in sorted(injections, key=lambda item: (item.label, item.layer)):
            direction, moved = item.vector.double(), shift[item.layer].double()
            length = float(direction.norm())
            cosine = float(torch.nn.functional.cosine_similarity(direction, moved, dim=0))
            found.append(
                SteeringAgainst(
                    steering=item.label,
                    task=use.label,
                    layer=item.layer,
                    mode=item.mode,
                    cosine=cosine,
                    share=cosine * float(moved.norm()) / length if length else 0.0,
                    chance=3 / math.sqrt(direction.numel()),
                )
            )
    return found


def mean_states(model: ChangingModel, personality: Personality, probes: Sequence[Probe]) -> Tensor:
    """Float32 (L, d): mean over the prompts' last tokens of what each of L layers of width d gives.

    Args:
        model: of the repository.
        personality: which it is to be.
        probes: whose prompts are read; at most 16 rows of each.
    """
    with model.taking(personality) as (network, tokenizer), threads_for(network):
        readings = [_last_token(tokenizer, probe, number) for probe in probes for number in range(_rows(probe))]
        states = [found for _, found in activations(network, readings)]
    return torch.cat(states).mean(0)


def _rows(probe: Probe) -> int:
    return min(len(probe.rows), PROMPT_ROWS)


def _last_token(tokenizer: Any, probe: Probe, number: int) -> Reading:
    where = f"probe {probe.name}, row {number + 1}"
    ids = prompt_ids(tokenizer, messages(probe.rows[number].prompt, where), ANY_LENGTH, where=where)
    return Reading(ids, len(ids) - 1, len(ids))
