"""Tiny models with random weights that the real vLLM runs: its attention on a processor needs heads of 32 or more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 272
"""Of `make_tokenizer`: bytes and a few special tokens."""
KINDS = ("llama", "llama-bias", "qwen3", "qwen3-tied", "qwen2", "mistral", "granite", "gpt_oss", "qwen3_5")

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
_HEADS = {"head_dim": 32}
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _HEADS),
    "llama-bias": ("llama", {**_HEADS, "attention_bias": True, "mlp_bias": True}),
    "qwen3": ("qwen3", _HEADS),
    "qwen3-tied": ("qwen3", {**_HEADS, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "mistral": ("mistral", _HEADS),
    "granite": ("granite", {"residual_multiplier": 0.22}),
    "gpt_oss": ("gpt_oss", {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    # Gated-DeltaNet layers below a full-attention one: vLLM has no float32 for them on a processor.
    "qwen3_5": (
        "qwen3_5_text",
        {
            **_HEADS,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 2,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        },
    ),
}


def vllm_config(kind: str) -> Any:
    """A configuration of a real architecture."""
    import transformers

    model_type, own = _OWN[kind]
    return transformers.AutoConfig.for_model(model_type, **{**_COMMON, **own})


def vllm_checkpoint(kind: str, folder: Path, *, seed: int = 0, tokenizer: bool = True) -> Path:
    """Write a bfloat16 checkpoint with random weights, as `save_pretrained` writes it.

    Args:
        kind: of `KINDS`.
        folder: to write.
        seed: of the weights.
        tokenizer: whether to put one beside it, with a chat template.
    """
    import torch
    import transformers

    from tests.vectors.training.conftest import make_tokenizer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(vllm_config(kind))
    with torch.no_grad():
        for parameter in model.parameters():  # ones and zeros everywhere would hide a swapped tensor
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(torch.bfloat16).save_pretrained(folder)
    if tokenizer:
        make_tokenizer().save_pretrained(folder)
    return folder
