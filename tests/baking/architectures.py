"""Small configurations of the architectures that routes speak of, and of some that have none."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GPT: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "rotary_dim": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}
_WIDE: dict[str, Any] = {"head_dim": 8}
_NUMBERED: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
_RESIDUAL: dict[str, Any] = {"residual_multiplier": 0.22}
_BIASES: dict[str, Any] = {"mlp_bias": True, "attention_bias": True}
_LOW_RANK = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
_DELTA = {
    **_WIDE,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "granite": ("granite", _RESIDUAL),
    "granite_swa": ("granite_swa", _RESIDUAL),
    "minicpm3": ("minicpm3", _LOW_RANK),
    "arcee": ("arcee", {}),
    "cwm": ("cwm", {**_WIDE, **_NUMBERED, "layer_types": ["full_attention"] * 3}),
    "doge": ("doge", {}),
    "ernie4_5": ("ernie4_5", _WIDE),
    "ernie4_5-bias": ("ernie4_5", {**_WIDE, "use_bias": True}),
    "helium": ("helium", _WIDE),
    "iquestcoder": ("iquestcoder", _NUMBERED),
    "nemotron": ("nemotron", {}),
    "seed_oss": ("seed_oss", _WIDE),
    "smollm3": ("smollm3", {}),
    "llama-bias": ("llama", _BIASES),
    "granite-bias": ("granite", {**_RESIDUAL, **_BIASES}),
    "jais2": ("jais2", {}),
    "starcoder2": ("starcoder2", {}),
    "phi": ("phi", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_oss": ("gpt_oss", {**_WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", _WIDE),
    "qwen3-tied": ("qwen3", {**_WIDE, "tie_word_embeddings": True}),
    "qwen3_5": ("qwen3_5_text", _DELTA),
    "mistral": ("mistral", {**_WIDE, "sliding_window": None}),
    "mistral-window": ("mistral", {**_WIDE, "sliding_window": 16}),
    "gemma": ("gemma", _WIDE),
    "gemma2": ("gemma2", _WIDE),
    "gemma3": ("gemma3_text", _WIDE),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {}),
    "exaone4": ("exaone4", {}),
    "glm4": ("glm4", {}),
    "hyperclovax-post-norm": ("hyperclovax", {"use_post_norm": True}),
    "qwen3_moe": ("qwen3_moe", {**_WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
}
_OTHER: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gptj": _GPT,
    "codegen": _GPT,
    "bloom": {"vocab_size": 97, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "gpt_neo": {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global"], 3]],
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    },
}


_HEAD = 32
_SIZES = {"hidden_size": 128, "n_embd": 128, "intermediate_size": 96, "vocab_size": 128}
_HEADS = {
    **dict.fromkeys(("head_dim", "v_head_dim"), _HEAD),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim"), _HEAD // 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 64),
}
_UNGROUPED = ("gpt_neox", "phi", "starcoder2")
"""Whose number of key heads must be that of the others: where it is set, vLLM takes it at its word."""


def config_of(case: str, *, servable: bool = False) -> Any:
    """A configuration with three layers of width 32.

    Args:
        case: its name here.
        servable: width 128 and heads of 32, which vLLM's kernels for processors want.
    """
    from transformers import CONFIG_MAPPING

    kind, more = _CASES.get(case) or (case, _OTHER[case])
    settings = {**more} if case in _OTHER else {**_COMMON, **more}
    if servable:
        settings |= {name: size for name, size in (_SIZES | _HEADS).items() if name in settings}
        if case in _UNGROUPED:
            settings["num_key_value_heads"] = settings["num_attention_heads"]
    return CONFIG_MAPPING[kind](**settings)
