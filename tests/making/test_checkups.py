from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from typing import Any

import numpy
import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from personality.evaluation.repetition import repeated_grams
from personality.making.checkups import Checkups
from personality.manifests.errors import DataError
from personality.model import load_model, load_tokenizer
from personality.playground.behaviors import general
from personality.playground.repository import base_folder
from personality.vectors.training.examples import Example, Message
from personality.vectors.training.tokens import encode
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(base_folder())


@pytest.fixture
def model() -> Any:
    return load_model(base_folder())


def held_out(count: int, seed: int = 0) -> list[Example]:
    return [
        Example(
            prompt=tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"]),
            chosen=tuple(Message(turn["role"], turn["content"]) for turn in row["completion"]),
        )
        for row in general(count, seed)
    ]


def disturb(model: Any, size: float) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size)


def test_the_base_has_not_moved_from_itself(model: Any, tokenizer: Any) -> None:
    checkups = Checkups(model, tokenizer, held_out(6), held_out(3, 1))
    found = checkups.measure(model, 7)
    assert found.step == 7
    assert abs(found.kl) < 1e-6
    assert found.repetition == found.base_repetition == checkups.base_repetition
    assert found.repetition < 0.2


def kl_one_by_one(base: Any, model: Any, tokenizer: Any, examples: list[Example]) -> tuple[float, int]:
    """torch's KL divergence without batches and padding, and the number of tokens."""
    total, tokens = 0.0, 0
    for example in examples:
        item = encode(tokenizer, example.prompt, example.chosen, 512)
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            wanted, found = (
                m(input_ids=ids).logits[0, item.start - 1 : item.stop - 1].log_softmax(-1) for m in (base, model)
            )
        total += float(functional.kl_div(found, wanted, log_target=True, reduction="sum"))
        tokens += item.stop - item.start
    return total / tokens, tokens


def test_kl_is_torchs_over_the_responses_tokens(model: Any, tokenizer: Any) -> None:
    examples = held_out(6)
    checkups = Checkups(model, tokenizer, examples, examples[:1])
    disturb(model, 0.02)
    expected, tokens = kl_one_by_one(load_model(base_folder()), model, tokenizer, examples)
    assert checkups.tokens == tokens
    assert checkups.measure(model, 1).kl == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_5"])
def test_mixtures_and_recurrent_layers_are_measured_alike(tokenizer: Any, kind: str) -> None:
    config = tiny_config(kind)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    examples = held_out(5)
    checkups = Checkups(model, tokenizer, examples, examples[:3], new_tokens=8)
    assert abs(checkups.measure(model, 1).kl) < 1e-6
    base = copy.deepcopy(model)
    disturb(model, 0.2)
    expected, _ = kl_one_by_one(base, model, tokenizer, examples)
    assert expected > 0.01
    assert checkups.measure(model, 1).kl == pytest.approx(expected, rel=1e-3)


def test_adapters_are_measured_with_what_they_add(model: Any, tokenizer: Any) -> None:
    examples = held_out(4)
    checkups = Checkups(model, tokenizer, examples, examples[:2])
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    assert abs(checkups.measure(adapted, 1).kl) < 1e-6
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    expected, _ = kl_one_by_one(load_model(base_folder()), adapted, tokenizer, examples)
    assert checkups.measure(adapted, 2).kl == pytest.approx(expected, rel=1e-4)


def test_the_number_of_tokens_is_bounded(model: Any, tokenizer: Any) -> None:
    assert Checkups(model, tokenizer, held_out(30), held_out(1), tokens=50).tokens == 50


def test_a_model_that_has_fallen_apart_repeats_itself_far_from_the_base(model: Any, tokenizer: Any) -> None:
    checkups = Checkups(model, tokenizer, held_out(6), held_out(4, 1))
    with torch.no_grad():  # whatever is said, the same few words follow
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    found = checkups.measure(model, 1)
    assert found.repetition > found.base_repetition + 0.5
    assert found.kl > 2


def test_a_checkup_leaves_mode_and_random_numbers_alone(model: Any, tokenizer: Any) -> None:
    model.train()
    model.model.layers[1].eval()  # somebody's own choice
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    numpy.random.seed(5)  # the global generator is what must not change
    random.seed(5)
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    Checkups(model, tokenizer, held_out(4), held_out(2)).measure(model, 1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert random.getstate() == states[2]
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_predictions_that_are_no_numbers_show_as_such(model: Any, tokenizer: Any) -> None:
    checkups = Checkups(model, tokenizer, held_out(4), held_out(2))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(math.nan)
    assert math.isnan(checkups.measure(model, 1).kl)


def test_over_long_examples_are_left_out_and_none_left_is_refused(model: Any, tokenizer: Any) -> None:
    examples = held_out(3)
    long = replace(examples[0], chosen=(Message("assistant", "word " * 400),))
    assert (
        Checkups(model, tokenizer, [long, *examples[1:]], examples, max_length=128).tokens
        == Checkups(model, tokenizer, examples[1:], examples, max_length=128).tokens
    )
    with pytest.raises(DataError, match="0 of 1 examples and 3 of 3 prompts have at most 128"):
        Checkups(model, tokenizer, [long], examples, max_length=128)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repeated_grams_counts_what_occurred_before(tokens: list[int], size: int) -> None:
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    before = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repeated_grams(tokens, size) == pytest.approx(before / len(grams) if grams else 0.0)
