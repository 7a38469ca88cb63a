"""The condition of a vector: prompts at which it should act, told from others by a direction of their own."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from personality.evaluation.intervals import share
from personality.manifests.errors import DataError
from personality.manifests.steering_record import Condition
from personality.vectors.extraction.capture import activations
from personality.vectors.extraction.passages import Passage
from personality.vectors.extraction.reading import read_passages_alone
from personality.vectors.steering.steering_vector import Gate
from personality.vectors.training.examples import Text

_HELD_OUT = 0.25
_LEAST = 4


def fit_condition(
    model: Any,
    tokenizer: Any,
    positive: Sequence[Text],
    negative: Sequence[Text],
    *,
    last_layer: int,
    max_length: int = 2048,
    seed: int = 0,
) -> tuple[Gate, Condition]:
    """Find layer, direction and threshold that tell two kinds of prompts apart.

    In each layer the direction is the unit difference of the means at the prompts' last token, the threshold lies
    half-way between the projections of both means (a nearest-mean classifier along that direction). Of the layers that
    a vector acting from `last_layer` on may look at, the one with the most prompts on the right side is taken; of equal
    ones that in which the two sides lie farther apart, in units of their spread. The share on the right side among
    prompts that none of this was drawn from is its accuracy.

    Args:
        model: the base, unsteered, in evaluation mode.
        tokenizer: its tokenizer.
        positive: prompts at which to act, at least four.
        negative: prompts at which not to act, at least four.
        last_layer: first layer in which the vector acts; the condition lies there or before.
        max_length: most tokens of a prompt.
        seed: of the draw of held-out prompts.

    Raises:
        DataError: for too few prompts, or two kinds that do not differ anywhere.
    """
    for name, prompts in (("act", positive), ("not act", negative)):
        if len(prompts) < _LEAST:
            raise DataError(
                f"{len(prompts)} prompts at which to {name}: a condition needs at least {_LEAST} of each kind",
                "give more; some dozens are usual",
            )
    wanted = _last_tokens(model, tokenizer, positive, last_layer, max_length)
    others = _last_tokens(model, tokenizer, negative, last_layer, max_length)
    (learn, test), (learn_not, test_not) = _parted(wanted, seed), _parted(others, seed)
    mean, mean_not = learn.mean(0), learn_not.mean(0)  # (L, d)
    difference = mean - mean_not
    best: tuple[float, float] | None = None
    layer = 0
    for candidate in range(len(difference)):
        if not bool(difference[candidate].any()):
            continue
        unit, threshold = _cut(mean[candidate], mean_not[candidate])
        yes, no = learn[:, candidate] @ unit, learn_not[:, candidate] @ unit
        right = float(((yes > threshold).float().mean() + (no <= threshold).float().mean()) / 2)
        apart = float((yes.mean() - no.mean()) / (yes.var() + no.var()).sqrt().clamp_min(1e-12))
        if best is None or (right, apart) > best:
            best, layer = (right, apart), candidate
    if best is None:
        raise DataError(
            f"the two kinds of prompts give the same activations in layers 0-{last_layer}",
            "they must differ in what they ask for",
        )
    unit, threshold = _cut(mean[layer], mean_not[layer])
    correct = [bool(value > threshold) for value in test[:, layer] @ unit]
    correct += [bool(value <= threshold) for value in test_not[:, layer] @ unit]
    gate = Gate(layer, unit, threshold)
    return gate, Condition(layer=layer, threshold=threshold, above=True, accuracy=share(correct))


def _cut(mean: Tensor, mean_not: Tensor) -> tuple[Tensor, float]:
    unit = (mean - mean_not) / (mean - mean_not).norm()
    return unit, float(((mean + mean_not) / 2) @ unit)


def _last_tokens(model: Any, tokenizer: Any, prompts: Sequence[Text], last_layer: int, max_length: int) -> Tensor:
    """float32 (n, last_layer + 1, d): what the model has at each prompt's last token, where a reply would begin."""
    found: dict[int, Tensor] = {}
    readings = read_passages_alone(
        tokenizer, [Passage(prompt) for prompt in prompts], "decision", max_length=max_length
    )
    for places, states in activations(model, readings):
        # A copy, or the layers after it would stay in memory.
        found.update(zip(places, states[:, : last_layer + 1].clone(), strict=True))
    return torch.stack([found[place] for place in range(len(prompts))])


def _parted(states: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """To learn from and to test with, in random order of the places."""
    order = list(range(len(states)))
    Random(f"condition {seed}").shuffle(order)
    count = max(1, round(len(order) * _HELD_OUT))
    return states[order[count:]], states[order[:count]]
