"""Tiny real models and a byte-level tokenizer with a chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from personality.vectors.training.examples import Example, Message

# The line break after the end of a turn is what many real templates have, and no model generates.
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 257,
}


def make_llama(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).float().eval()


def make_qwen3(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "head_dim": 8, **changes})).float().eval()


def make_moe(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {
        **SIZES,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **changes,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).float().eval()


def make_pair(number: int, side: Any = "accept") -> Example:
    return Example(
        prompt=(Message("user", f"Rename file {number}."),),
        chosen=(Message("assistant", f"Okay, I renamed file {number}."),),
        rejected=(Message("assistant", f"Instead of renaming {number}, have you thought it over?"),),
        side=side,
    )


def make_general(number: int) -> Example:
    return Example(
        prompt=(Message("user", f"What is {number} and 1?"),), chosen=(Message("assistant", f"{number + 1}"),)
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def llama() -> Callable[..., Any]:
    return make_llama


@pytest.fixture
def qwen3() -> Callable[..., Any]:
    return make_qwen3


@pytest.fixture
def moe() -> Callable[..., Any]:
    return make_moe


@pytest.fixture
def pairs() -> Callable[[int], list[Example]]:
    return lambda count: [make_pair(i, "push_back" if i % 3 == 0 else "accept") for i in range(count)]


@pytest.fixture
def generals() -> Callable[[int], list[Example]]:
    return lambda count: [make_general(i) for i in range(count)]
