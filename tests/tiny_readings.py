"""Tiny random models in float32, and readings of random tokens."""

from __future__ import annotations

import random
from typing import Any

import torch

from personality.vectors.extraction.reading import Reading, ReadPair
from tests.conftest import tiny_config

VOCABULARY = 97


def tiny_model(kind: str, seed: int = 0) -> Any:
    """Weights large enough that layers do something."""
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(kind)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_reading(rng: random.Random, longest: int = 24) -> Reading:
    count = rng.randint(2, longest)
    start = rng.randrange(count)
    return Reading(tuple(rng.randrange(VOCABULARY) for _ in range(count)), start, rng.randint(start + 1, count))


def make_pairs(count: int, seed: int = 0) -> list[ReadPair]:
    rng = random.Random(seed)
    return [ReadPair(make_reading(rng), make_reading(rng), f"pairs.jsonl:{n + 1}") for n in range(count)]


def marked_pairs(count: int, seed: int = 0) -> list[ReadPair]:
    """Pairs of the same random text, but for the token before the last: 1 on the positive side, 2 on the negative."""
    rng = random.Random(seed)
    pairs = []
    for n in range(count):
        head = [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(3, 12))]
        last = rng.randrange(3, VOCABULARY)
        sides = [(*head, mark, last) for mark in (1, 2)]
        positive, negative = (Reading(ids, len(ids) - 1, len(ids)) for ids in sides)
        pairs.append(ReadPair(positive, negative, f"pairs.jsonl:{n + 1}"))
    return pairs
