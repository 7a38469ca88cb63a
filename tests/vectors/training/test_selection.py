"""Choosing parameters by what they are for."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from personality.manifests.errors import UsageError
from personality.vectors.layers import layer_of
from personality.vectors.training.selection import group_of, group_sizes, select_parameters
from tests.conftest import ARCHITECTURES, tiny_config


def make_model(kind: str) -> Any:
    return AutoModelForCausalLM.from_config(tiny_config(kind))


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "attention.q"),
        ("model.layers.3.self_attn.k_proj.bias", "attention.k"),
        ("model.layers.3.self_attn.v_proj.weight", "attention.v"),
        ("model.layers.3.self_attn.o_proj.weight", "attention.o"),
        ("model.layers.3.self_attn.qkv_proj.weight", "attention.qkv"),
        ("model.layers.3.self_attn.kv_b_proj.weight", "attention.kv"),
        ("model.layers.3.self_attn.q_norm.weight", "norm"),
        ("model.layers.3.self_attn.kv_a_layernorm.weight", "norm"),
        ("model.layers.3.self_attn.sinks", "attention.other"),
        ("model.layers.3.mlp.gate_proj.weight", "mlp.gate"),
        ("model.layers.3.mlp.gate_up_proj.weight", "mlp.gate_up"),
        ("model.layers.3.mlp.gate.weight", "router"),
        ("model.layers.3.mlp.shared_expert_gate.weight", "router"),
        ("model.layers.3.mlp.experts.gate_up_proj", "experts.gate_up"),
        ("model.layers.3.mlp.experts.down_proj_bias", "experts.down"),
        ("model.layers.3.mlp.shared_expert.up_proj.weight", "experts.shared.up"),
        ("model.layers.3.linear_attn.in_proj_qkvz.weight", "gdn.in"),
        ("model.layers.3.linear_attn.g_proj.weight", "gdn.in"),
        ("model.layers.3.linear_attn.conv1d.weight", "gdn.conv"),
        ("model.layers.3.linear_attn.A_log", "gdn.decay"),
        ("model.layers.3.linear_attn.dt_bias", "gdn.decay"),
        ("model.layers.3.linear_attn.out_proj.weight", "gdn.out"),
        ("model.layers.3.linear_attn.norm.weight", "norm"),
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "norm"),
        ("transformer.h.0.attn.c_attn.weight", "attention.qkv"),
        ("transformer.h.0.attn.c_proj.weight", "attention.o"),
        ("transformer.h.0.mlp.c_proj.weight", "mlp.down"),
        ("transformer.h.0.ln_1.weight", "norm"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "attention.q"),
        ("base_model.model.model.layers.0.mlp.down_proj.base_layer.weight", "mlp.down"),
        ("model.visual.blocks.0.attn.qkv.weight", "beside"),
        ("something.else", "other"),
    ],
)
def test_group(name: str, group: str) -> None:
    assert group_of(name) == group


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_parameter_has_a_named_group(kind: str) -> None:
    model = make_model(kind)
    assert not [group for group in group_sizes(model) if group.endswith("other")]
    assert sum(group_sizes(model).values()) == sum(p.numel() for p in model.parameters())
    assert select_parameters(model, [], None) == {name for name, _ in model.named_parameters()}


def test_a_group_or_its_beginning() -> None:
    model = make_model("llama-bias")
    queries = select_parameters(model, ["attention.q"], None)
    assert len(queries) == 6  # weight and bias of three layers
    assert all(".q_proj." in name for name in queries)
    attention = select_parameters(model, ["attention"], None)
    assert queries < attention
    assert len(attention) == 24
    both = select_parameters(model, ["attention", "mlp.up"], None)
    assert len(both) == 30


def test_layers() -> None:
    model = make_model("qwen3_5")
    middle = select_parameters(model, [], "1-2")
    assert {layer_of(name) for name in middle} == {1, 2}
    assert {layer_of(name) for name in select_parameters(model, ["gdn"], "1-2")} == {1}
    assert select_parameters(model, ["attention"], "2") == select_parameters(model, ["attention"], None)


def test_below_peft() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(make_model("qwen3"), config)
    names = select_parameters(model, ["attention.q"], "0")
    assert len([name for name in names if "lora_" in name]) == 2
    assert names <= dict(model.named_parameters()).keys()


def test_words_that_choose_nothing_are_refused() -> None:
    model = make_model("qwen3_5")
    with pytest.raises(UsageError, match="atention") as wrong:
        select_parameters(model, ["atention.q"], None)
    assert "did you mean `attention.q`?" in wrong.value.hint
    assert "gdn.decay (16)" in wrong.value.hint
    with pytest.raises(UsageError, match="layers 2-2"):
        select_parameters(model, ["gdn"], "2")
    with pytest.raises(UsageError, match="embedding"):
        select_parameters(model, ["embedding"], "0-2")
    with pytest.raises(UsageError, match="3 layers"):
        select_parameters(model, [], "1-3")
    with pytest.raises(UsageError, match="range of layers"):
        select_parameters(model, [], "two")


def test_the_router_is_not_a_gate() -> None:
    model = make_model("qwen3_moe")
    assert len(select_parameters(model, ["router"], None)) == 3
    assert len(select_parameters(model, ["experts"], None)) == 6
    with pytest.raises(UsageError):
        select_parameters(model, ["mlp.gate"], None)
