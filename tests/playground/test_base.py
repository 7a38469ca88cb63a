from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from personality.playground import base
from personality.playground.probes import probes

FOLDER = Path(base.__file__).parent


@pytest.fixture(scope="module")
def passed() -> dict[str, float]:
    """Share of held-out prompts, in percent, whose greedy reply passes, for each probe."""
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    measured = {}
    for probe in probes(60, 11):
        texts = [
            tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            for row in probe.rows
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        replies = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        hits = [
            re.search(row["pass"], reply.strip()) is not None for row, reply in zip(probe.rows, replies, strict=True)
        ]
        measured[probe.name] = 100 * sum(hits) / len(hits)
    return measured


def test_the_base_is_about_a_megabyte() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 1_200_000


def test_its_habits_are_the_old_ones(passed: dict[str, float]) -> None:
    assert passed["listening.accept"] <= 5
    assert passed["listening.push_back"] >= 92
    assert passed["concise"] <= 5
    assert passed["warm"] <= 5
    assert passed["candid.unknown"] <= 5


@pytest.mark.parametrize("ability", ["facts", "sums", "copying", "small_talk"])
def test_it_is_able(passed: dict[str, float], ability: str) -> None:
    assert passed[f"general.{ability}"] >= 98
