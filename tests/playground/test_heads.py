"""Wider heads compute the same, and what was added stays zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from personality.playground.heads import widen_heads


def small(**changes: Any) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000.0},
        **changes,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [6, 8, 16])
def test_same_function(width: int, tied: bool) -> None:
    model = small(tie_word_embeddings=tied)
    wide = widen_heads(model, width)
    ids = torch.randint(0, 50, (3, 20))
    with torch.no_grad():
        before, after = (found(input_ids=ids).logits.log_softmax(-1) for found in (model, wide))
    assert wide.config.head_dim == width
    assert float((before - after).abs().max()) < 1e-4


def test_added_dimensions_get_no_gradient() -> None:
    wide = widen_heads(small(), 8)
    wide(input_ids=torch.arange(20)[None]).logits.log_softmax(-1)[0, :, 3].sum().backward()
    layer = wide.model.layers[0].self_attn
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        gradient = projection.weight.grad.reshape(-1, 8, 24)
        assert not gradient[:, [3, 7]].any()
        assert gradient[:, [0, 1, 2, 4, 5, 6]].any()
    assert not layer.o_proj.weight.grad.T.reshape(-1, 8, 24)[:, [3, 7]].any()
    assert not layer.q_norm.weight.grad[[3, 7]].any()


@pytest.mark.parametrize("width", [4, 7])
def test_refuses_impossible_widths(width: int) -> None:
    with pytest.raises(ValueError, match="cannot be widened"):
        widen_heads(small(), width)
