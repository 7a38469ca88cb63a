"""What may be baked at all, and what exactly is added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality.baking.architecture import Architecture
from personality.baking.bake import additions, bake
from personality.baking.routes import fitting, plan_for
from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorSpec
from personality.model import load_model
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.steering.decoder_layers import decoder_layers
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.steering_vector import Gate

GATE = Gate(0, torch.ones(32), 0.0)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Injection(1, torch.ones(32), "decision", "add", label="warm@2"), "only at the last token of the prompt"),
        (Injection(1, torch.ones(32), "response", "add", label="warm@2"), "only where it predicts the reply"),
        (Injection(1, torch.ones(32), "all", "project", label="warm@2"), "acts by `project`"),
        (Injection(1, torch.ones(32), "all", "norm-preserving", label="warm@2"), "acts by `norm-preserving`"),
        (Injection(1, torch.ones(32), "all", "add", GATE, label="warm@2"), "only on prompts that pass its condition"),
    ],
    ids=["decision", "response", "project", "norm-preserving", "condition"],
)
def test_what_acts_otherwise_than_always_and_everywhere_is_refused(
    item: Injection, reason: str, make_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(IncompatibleError, match=f"`warm@2` cannot be baked: it .*{reason}") as caught:
        bake(Checkpoint(make_checkpoint("llama")), [item], torch.bfloat16)
    for way in ("persona promote warm", "persona ask", "--without-steering"):
        assert way in caught.value.hint


def test_what_is_added_is_what_the_hooks_add(make_checkpoint: Callable[..., Path]) -> None:
    generator = torch.Generator().manual_seed(0)
    items = [
        Injection(layer, torch.randn(32, generator=generator), "all", "add", label=label)
        for layer in (2, 0)
        for label in ("b@1", "a@1", "c@2")
    ]
    found = additions(items, torch.bfloat16)
    assert list(found) == [0, 2]
    assert all(torch.equal(vector, vector.bfloat16().float()) for vector in found.values())
    assert all(torch.equal(vector, additions(items[::-1], torch.bfloat16)[layer]) for layer, vector in found.items())
    model = load_model(make_checkpoint("llama"))
    seen: list[torch.Tensor] = []
    # A layer that gives zeros shows what is added to it.
    zero = decoder_layers(model)[2].register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    with steered(model, items, rounding=torch.bfloat16):
        look = decoder_layers(model)[2].register_forward_hook(lambda module, args, output: seen.append(output))
        model(input_ids=torch.arange(4)[None])
    zero.remove()
    look.remove()
    assert torch.equal(seen[0][0, 0], found[2])


def test_a_quantized_base_is_refused(make_checkpoint: Callable[..., Path]) -> None:
    base = make_checkpoint("llama")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"  # not where the vector acts: its bias would have to exist too
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(IncompatibleError, match="nothing can be written beside quantized weights"):
        bake(Checkpoint(base), [Injection(1, torch.ones(32), "all", "add", label="a@1")], torch.bfloat16)


@pytest.mark.parametrize("present", [0, 2])
def test_keys_that_are_not_the_architectures_own_are_refused(present: int) -> None:
    names = [f"{prefix}layers.1.mlp.down_proj.weight" for prefix in ("", "other.")][:present]
    config: dict[str, Any] = {"model_type": "llama", "mlp_bias": False}
    specs = {name: TensorSpec(name, "BF16", (4, 6)) for name in names}
    with pytest.raises(IncompatibleError, match=f"has {present} tensors named `…mlp.down_proj.weight`, not one"):
        Architecture(config, specs).one("mlp.down_proj.weight", 1)


def test_a_bloom_that_skips_its_output_bias_is_refused() -> None:
    name = "transformer.h.0.mlp.dense_4h_to_h.bias"
    specs = {name: TensorSpec(name, "BF16", (4,))}
    for config in ({}, {"pretraining_tp": 4}, {"slow_but_exact": True}):
        assert fitting(Architecture({"model_type": "bloom", **config}, specs)) == ["existing-bias"]
    exact = Architecture({"model_type": "bloom", "pretraining_tp": 4, "slow_but_exact": True}, specs)
    with pytest.raises(IncompatibleError, match="`pretraining_tp: 4` it leaves the output projection's bias out"):
        plan_for(exact, {0: torch.ones(4)})
