"""Steering vectors for tests: a direction read from the playground's base, and its way into a repository."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from personality.making.vector_records import record_vector
from personality.manifests.manifest import Making, Manifest
from personality.manifests.repository import Repository
from personality.manifests.steering_record import Mode, Positions, SteeringRecord
from personality.model import load_model, load_tokenizer
from personality.playground.behaviors import examples
from personality.playground.repository import base_folder
from personality.vectors.extraction.capture import activations
from personality.vectors.extraction.reading import Reading
from personality.vectors.steering.steering_file import store_steering
from personality.vectors.steering.steering_vector import SteeringVector


def decision_direction(behavior: str, layer: int, *, count: int = 40, shots: int = 2) -> Tensor:
    """What earlier turns that show a behavior change at the last token of a prompt, on the playground's base.

    Args:
        behavior: of the playground.
        layer: after which the prompts are read.
        count: prompts.
        shots: earlier turns on each side.

    Returns:
        float32 (d,): mean with chosen earlier replies minus mean with rejected ones.
    """
    rows = examples(behavior, count, 0)
    draw = random.Random(0)
    positive: list[list[dict[str, str]]] = []
    negative: list[list[dict[str, str]]] = []
    for row in rows:
        shown = draw.sample([other for other in rows if other is not row], shots)
        for side, answer in ((positive, "chosen"), (negative, "rejected")):
            side.append([*(turn for shot in shown for turn in shot["prompt"] + shot[answer]), *row["prompt"]])
    model, tokenizer = load_model(base_folder()), load_tokenizer(base_folder())
    return _mean(model, tokenizer, positive, layer) - _mean(model, tokenizer, negative, layer)


def _mean(model: Any, tokenizer: Any, chats: list[list[dict[str, str]]], layer: int) -> Tensor:
    readings = []
    for chat in chats:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        readings.append(Reading(ids, len(ids) - 1, len(ids)))
    found = torch.cat([states[:, layer] for _, states in activations(model, readings)])
    return found.mean(0)


def steer(
    repository: Repository,
    behavior: str,
    layer: int,
    direction: Tensor,
    positions: Positions = "decision",
    *,
    mode: Mode = "add",
) -> Manifest:
    """Store a direction as the behavior's next vector, acting in one layer; scale 1 adds it as it is.

    Args:
        repository: where.
        behavior: whose.
        layer: in which it acts.
        direction: float32 (d,), with its length.
        positions: where it acts.
        mode: how it acts.
    """
    vector = SteeringVector({layer: direction.float()}, positions, mode, (layer,))
    with repository.writing():
        manifest, _ = record_vector(
            repository,
            behavior,
            repository.config().base,
            store_steering(repository, vector),
            Making(how="extract"),
            command=f"extract {behavior}",
            steering=SteeringRecord(positions=positions, mode=mode, layers=(layer,)),
        )
    return manifest
