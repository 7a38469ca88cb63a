"""Neurons whose sum is a constant: how near, in which dtypes, and where they cannot be built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from personality.baking.architecture import Architecture
from personality.baking.bake import bake
from personality.baking.baked_comparison import compare_baked
from personality.baking.swiglu_widening import SwigluWidening, neurons
from personality.builds.comparison import agreement, log_probabilities, probe_tokens
from personality.builds.writer import write_checkpoint
from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorSpec
from personality.model import load_model
from personality.playground.repository import base_folder
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from tests.conftest import tiny_checkpoint, tiny_config

ACTIVATIONS = (torch.nn.functional.silu, torch.nn.functional.gelu)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(2, 200),
    size=st.floats(-5, 5),
    spread=st.floats(0, 1.5),
    massive=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_the_neurons_sum_to_one_on_every_normalized_state(
    width: int, size: float, spread: float, massive: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    gamma = torch.exp(torch.randn(width, generator=generator).double() * spread + size)
    gamma *= torch.where(torch.rand(width, generator=generator) < 0.5, -1.0, 1.0)
    gates, ups = neurons(gamma, dtype)
    assert gates.dtype == ups.dtype == dtype
    state = torch.randn(width, generator=generator).double()
    if massive:
        state[0] = 1e4
    x = (gamma * state / state.square().mean().sqrt()).float()
    for activation in ACTIVATIONS:
        total = float((activation(gates.float() * x).double() * (ups.float() * x).double()).sum())
        # A product of two bfloat16 weights is within 2⁻¹¹ of what it should be, one weight alone within 2⁻⁹.
        assert total == pytest.approx(1, abs=2**-11 if dtype == torch.bfloat16 else 2e-6)


def test_a_coordinate_that_the_norm_shuts_off_is_refused() -> None:
    gamma = torch.ones(8)
    gamma[3] = 0
    with pytest.raises(IncompatibleError, match=r"`model.norm` has a weight of 0: the MLP does not see"):
        neurons(gamma, torch.bfloat16, "model.norm")


def test_float16_is_refused() -> None:
    specs = {
        f"model.layers.0.{name}.weight": TensorSpec(f"model.layers.0.{name}.weight", "F16", shape)
        for name, shape in {
            "mlp.gate_proj": (6, 4),
            "mlp.up_proj": (6, 4),
            "mlp.down_proj": (4, 6),
            "post_attention_layernorm": (4,),
        }.items()
    }
    architecture = Architecture({"model_type": "qwen3", "hidden_act": "silu", "intermediate_size": 6}, specs)
    with pytest.raises(IncompatibleError, match=r"`model.layers.0.mlp.gate_proj.weight` is float16"):
        SwigluWidening().plan(architecture, {0: torch.ones(4)})


def test_all_layers_widen_and_only_the_acting_one_gets_weights(tmp_path: Path) -> None:
    base = tiny_checkpoint("qwen3", tmp_path / "base")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 0.3
    baked = bake(Checkpoint(base), [Injection(1, vector, "all", "add", label="a@1")], torch.bfloat16)
    (tmp_path / "out").mkdir()
    # Many small files: what a tensor is made from lies elsewhere than the tensor itself.
    write_checkpoint(baked, tmp_path / "out", config=baked.plan.config, shard_bytes=8_000)
    before = load_file(base / "model.safetensors")
    after = {
        name: tensor for path in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        if ".mlp." not in name:
            assert torch.equal(old, new)
            continue
        down = "down_proj" in name
        added = new[:, 48:] if down else new[48:]
        assert torch.equal(new[:, :48] if down else new[:48], old)
        assert added.shape == (32, 32)
        assert bool(added.any()) == (".layers.1." in name)
    assert torch.equal(after["model.layers.1.mlp.down_proj.weight"][:, 48:], vector.bfloat16()[:, None].expand(32, 32))
    assert json.loads((tmp_path / "out/config.json").read_text())["intermediate_size"] == 80
    assert "32 more neurons in every layer (48 → 80)" in baked.plan.cost


def test_a_prediction_head_widens_with_the_others_and_stays_what_it_is() -> None:
    names = {"gate_proj": (6, 4), "up_proj": (6, 4), "down_proj": (4, 6)}
    prefixes = ("model.language_model.layers.0.mlp", "mtp.layers.0.mlp")
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.{name}.weight": shape for prefix in prefixes for name, shape in names.items()
    }
    shapes["model.language_model.layers.0.post_attention_layernorm.weight"] = (4,)
    shapes["model.visual.blocks.0.mlp.linear_fc1.weight"] = (6, 4)
    specs = {name: TensorSpec(name, "BF16", shape) for name, shape in shapes.items()}
    text = {"model_type": "qwen3_5_text", "hidden_act": "silu", "intermediate_size": 6}
    architecture = Architecture({"model_type": "qwen3_5", "text_config": text}, specs)
    plan = SwigluWidening().plan(architecture, {0: torch.ones(4)})
    assert plan.config == {"model_type": "qwen3_5", "text_config": {**text, "intermediate_size": 10}}
    assert plan.changes.keys() == {name for name in specs if "_proj" in name}
    assert plan.changes["mtp.layers.0.mlp.down_proj.weight"].spec.shape == (4, 10)


def test_on_the_playground_model(tmp_path: Path) -> None:
    base = base_folder()
    generator = torch.Generator().manual_seed(0)
    items = [Injection(n, torch.randn(96, generator=generator) * 30, "all", "add", label="a@1") for n in (1, 3)]
    baked = bake(Checkpoint(base), items, torch.bfloat16)
    write_checkpoint(baked, tmp_path, config=baked.plan.config)
    model, exported = load_model(base), load_model(tmp_path)
    ids = probe_tokens(1024)
    found = compare_baked(
        log_probabilities(exported, ids), model, items, ids, tolerance=baked.plan.tolerance, rounding=torch.bfloat16
    )
    assert found.effect > 5
    assert found.agreement.greatest_difference < 1e-3
    assert found.agreement.greedy == 1
    # Computing in bfloat16 costs the baked model what it costs the hooked one.
    with steered(model, items, rounding=torch.bfloat16):
        wanted = log_probabilities(model, ids)
        hooked = agreement(log_probabilities(model.bfloat16(), ids), wanted)
    lost = agreement(log_probabilities(exported.bfloat16(), ids), wanted)
    assert lost.greatest_difference < 2 * hooked.greatest_difference


def test_inside_a_model_that_sees(tmp_path: Path) -> None:
    """Qwen3.5 keeps the language model's settings in a part of its configuration, and its keys below a prefix."""
    import transformers

    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(
        text_config=tiny_config("qwen3_5").to_dict(),
        vision_config={**vision, "patch_size": 4, "num_position_embeddings": 16},
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    torch.manual_seed(0)
    whole = transformers.Qwen3_5ForConditionalGeneration(config).to(torch.bfloat16)
    whole.save_pretrained(tmp_path / "base")
    base = Checkpoint(tmp_path / "base")
    item = Injection(0, torch.randn(32, generator=torch.Generator().manual_seed(0)) * 0.3, "all", "add", label="a@1")
    baked = bake(base, [item], torch.bfloat16)
    (tmp_path / "out").mkdir()
    write_checkpoint(baked, tmp_path / "out", config=baked.plan.config)
    assert json.loads((tmp_path / "out/config.json").read_text())["text_config"]["intermediate_size"] == 80
    assert all(".language_model." in name for name in baked.plan.changes)
    ids = probe_tokens(90)
    found = compare_baked(
        log_probabilities(load_model(tmp_path / "out"), ids),
        load_model(tmp_path / "base"),
        [item],
        ids,
        tolerance=baked.plan.tolerance,
        rounding=torch.bfloat16,
    )
    assert found.same
    assert found.effect > 0.05
