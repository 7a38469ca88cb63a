"""What a version's recurrent layers remember of a prompt: the state of Gated DeltaNet layers, beside the base's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from personality.changing_model import ChangingModel
from personality.evaluation.intervals import mean
from personality.evaluation.scores import encode, prompt_text
from personality.evaluation.suite import Row
from personality.manifests.errors import DataError, IncompatibleError
from personality.manifests.evaluation import Figure
from personality.manifests.personality_record import Personality
from personality.model import threads_for


@dataclass(frozen=True)
class LayerState:
    """One recurrent layer's state after the prompt.

    Attributes:
        layer: from 0.
        cosine: of the version's state and the base's, mean over rows (bootstrap interval).
        norm: the version's norm divided by the base's, mean over rows (bootstrap interval).
        separation_base, separation_version: how surely the state tells directions from other prompts, 0.5 to 1: area
            under the curve of the projection on the difference of means, on rows that the difference was not taken
            from; None without other prompts.
    """

    layer: int
    cosine: Figure
    norm: Figure
    separation_base: float | None = None
    separation_version: float | None = None


def state_shift(
    bench: ChangingModel, personality: Personality, rows: Sequence[Row], others: Sequence[Row] = ()
) -> tuple[LayerState, ...]:
    """Compare a version's states after the context with the base's.

    Args:
        bench: composes.
        personality: of the version.
        rows: whose prompts give directions, such as a probe's.
        others: rows whose prompts do not, to see how far the state tells them apart; none, or at least four.

    Raises:
        IncompatibleError: for a model without recurrent layers.
        DataError: for fewer than four rows of either kind, where both are given.
    """
    if others and min(len(rows), len(others)) < 4:
        raise DataError(
            f"{len(rows)} prompts with directions and {len(others)} others are too few to tell apart",
            "give at least four of each",
        )
    base = personality.model_copy(update={"uses": ()})
    states = []
    for each in (base, personality):
        with bench.taking(each) as (model, tokenizer), threads_for(model):
            layers = recurrent_layers(model)
            states.append([recurrent_states(model, tokenizer, kind) for kind in (rows, others)])
    found = []
    for index, layer in enumerate(layers):
        (before, before_others), (after, after_others) = (
            [kind[:, index] if len(kind) else kind for kind in version] for version in states
        )
        lengths = [np.linalg.norm(state, axis=-1) for state in (before, after)]
        cosines = (before * after).sum(-1) / np.maximum(lengths[0] * lengths[1], 1e-30)
        found.append(
            LayerState(
                layer,
                mean(cosines.tolist()),
                mean((lengths[1] / np.maximum(lengths[0], 1e-30)).tolist()),
                separation(before, before_others) if others else None,
                separation(after, after_others) if others else None,
            )
        )
    return tuple(found)


def recurrent_layers(model: Any) -> list[int]:
    """Numbers of a model's Gated DeltaNet layers.

    Raises:
        IncompatibleError: when it has none.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    found = [number for number, kind in enumerate(kinds) if kind == "linear_attention"]
    if not found:
        raise IncompatibleError("this model has no recurrent layers", "attention is what its layers remember by")
    return found


@torch.inference_mode()
def recurrent_states(model: Any, tokenizer: Any, rows: Sequence[Row]) -> np.ndarray:
    """States after each row's prompt.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        rows: whose prompts to read.

    Returns:
        float64 (rows, recurrent layers, heads · keys · values).
    """
    layers = recurrent_layers(model)
    device = next(model.parameters()).device
    found = []
    for row in rows:
        ids = encode(tokenizer, prompt_text(tokenizer, [turn.as_json() for turn in row.prompt]))
        cache = model(input_ids=torch.tensor([ids], device=device), use_cache=True).past_key_values
        found.append([cache.layers[layer].recurrent_states[0][0].flatten().double().cpu().numpy() for layer in layers])
    return np.asarray(found)


def separation(first: np.ndarray, second: np.ndarray) -> float:
    """How surely one projection tells two sets apart, each half judged by the direction of the other half.

    Args:
        first, second: (rows, features), at least four rows each.

    Returns:
        Area under the ROC curve, the mean of both halves: 0.5 for no difference, 1 for a clean one.
    """
    areas = []
    for half in (0, 1):
        train = [rows[half::2] for rows in (first, second)]
        test = [rows[1 - half :: 2] for rows in (first, second)]
        direction = train[0].mean(0) - train[1].mean(0)
        ours, theirs = (rows @ direction for rows in test)
        # Mann and Whitney's U, ties counted half.
        wins = (ours[:, None] > theirs[None]).mean() + 0.5 * (ours[:, None] == theirs[None]).mean()
        areas.append(float(wins))
    return float(np.mean(areas))
