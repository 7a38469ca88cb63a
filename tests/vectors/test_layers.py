from __future__ import annotations

import pytest

from personality.vectors.layers import layer_count, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.self_attn.q_proj.weight", 0),
        ("model.language_model.layers.31.mlp.up_proj.weight", 31),
        ("transformer.h.7.attn.c_attn.weight", 7),
        ("gpt_neox.layers.12.attention.dense.bias", 12),
        ("layers.3.w", 3),
        ("model.layers.2.mlp.experts.11.up_proj.weight", 2),
        ("model.embed_tokens.weight", None),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
        ("model.visual.blocks.4.attn.qkv.weight", None),
        ("mtp.layers.0.mlp.up_proj.weight", None),
        ("players.4.score", None),
    ],
)
def test_layer_of(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_layer_count() -> None:
    assert layer_count(["model.layers.0.w", "model.layers.11.w", "model.visual.blocks.40.w", "lm_head.weight"]) == 12
    assert layer_count(["lm_head.weight"]) == 0
