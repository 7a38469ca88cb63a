from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from personality.playground.dialogue import Messages, conversation
from personality.playground.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(contents(300), 600)


def contents(count: int) -> Iterator[str]:
    rng = Random(0)
    for _ in range(count):
        for turn in conversation(rng)[0]:
            yield " " + turn["content"]


def test_any_text_survives(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ["Rename it to 1024.", "größer – 日本 \n\t x", "  two spaces"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    digits = [tokenizer.decode([token]) for token in tokenizer("1742")["input_ids"]]
    assert digits == ["1", "7", "4", "2"]


def test_prompt_and_reply_are_tokenized_apart_as_together(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = Random(1)
    for _ in range(200):
        messages: Messages = conversation(rng)[0]
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
        reply = tokenizer(f" {messages[-1]['content']}<|end|>", add_special_tokens=False)["input_ids"]
        assert whole == prompt["input_ids"] + reply
        assert whole[-1] == tokenizer.eos_token_id


def test_template_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|system|> Be brief.<|end|><|user|> Hello.<|end|><|assistant|>"
