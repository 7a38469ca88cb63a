"""Biases that a configuration switches on: all of them must be there, and one that is lost must be noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality.baking.architecture import Architecture
from personality.baking.bake import bake
from personality.baking.baked_comparison import compare_baked
from personality.baking.baked_weights import BakedWeights
from personality.baking.mlp_bias import MlpBias
from personality.baking.routes import plan_for
from personality.builds.comparison import log_probabilities, probe_tokens
from personality.builds.writer import write_checkpoint
from personality.manifests.errors import IncompatibleError, PersonaError
from personality.manifests.tensor_file import TensorSpec
from personality.model import load_model
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.steering.injection import Injection

IDS = probe_tokens(97)


def steering(*layers: int) -> list[Injection]:
    generator = torch.Generator().manual_seed(7)
    return [Injection(layer, torch.randn(32, generator=generator) * 0.3, "all", "add", label="a@1") for layer in layers]


def write(base: Path, folder: Path, injections: list[Injection]) -> BakedWeights:
    folder.mkdir()
    baked = bake(Checkpoint(base), injections, torch.bfloat16)
    write_checkpoint(baked, folder, config=baked.plan.config)
    return baked


def test_every_bias_exists_and_all_but_the_vector_is_zero(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = make_checkpoint("llama")
    items = steering(1)
    write(base, tmp_path / "out", items)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    new = {f"model.layers.{n}.mlp.{p}_proj.bias" for n in range(3) for p in ("gate", "up", "down")}
    assert after.keys() - before.keys() == new
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(after["model.layers.1.mlp.down_proj.bias"], items[0].vector.bfloat16())
    assert not any(bool(after[name].any()) for name in new - {"model.layers.1.mlp.down_proj.bias"})
    assert {after[name].dtype for name in new} == {torch.bfloat16}
    settings = [json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out")]
    assert settings[1] == {**settings[0], "mlp_bias": True}


def compared(base: Path, folder: Path, items: list[Injection], tolerance: float = 0.0) -> Any:
    found = log_probabilities(load_model(folder), IDS)
    return compare_baked(found, load_model(base), items, IDS, tolerance=tolerance, rounding=torch.bfloat16)


def test_a_bias_that_is_lost_is_noticed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """An engine that leaves out what it does not know; or one weak vector among others that never arrives."""
    base = make_checkpoint("llama")
    items = [*steering(0, 2), Injection(1, torch.full((32,), 1e-2), "all", "add", label="a@1")]
    write(base, tmp_path / "out", items)
    assert compared(base, tmp_path / "out", items).same
    weak = load_file(tmp_path / "out/model.safetensors")
    weak["model.layers.1.mlp.down_proj.bias"].zero_()
    save_file(weak, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    assert not compared(base, tmp_path / "out", items).same
    (tmp_path / "out/config.json").write_bytes((base / "config.json").read_bytes())
    ignoring = compared(base, tmp_path / "out", items)
    assert not ignoring.same
    assert ignoring.agreement.greatest_difference == pytest.approx(ignoring.effect, rel=1e-3)


def test_a_bias_that_is_missing_under_mlp_bias_is_noticed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = make_checkpoint("llama")
    items = steering(1)
    write(base, tmp_path / "out", items)
    tensors = load_file(tmp_path / "out/model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.bias"]
    save_file(tensors, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    assert not compared(base, tmp_path / "out", items).same


def test_what_overflows_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    item = Injection(0, torch.full((32,), 1e38), "all", "add", label="a@1")
    with pytest.raises(PersonaError, match=r"NaN or infinite values in `model.layers.0.mlp.down_proj.bias`"):
        write(make_checkpoint("llama"), tmp_path / "out", [item] * 8)


def test_a_steered_model_that_gives_no_numbers_is_nothing_to_compare_with(
    make_checkpoint: Callable[..., Path],
) -> None:
    model = load_model(make_checkpoint("llama"))
    broken = [Injection(0, torch.full((32,), float("nan")), "all", "add", label="a@1")]
    with pytest.raises(PersonaError):
        compare_baked(log_probabilities(model, IDS), model, broken, IDS, tolerance=0.02, rounding=torch.bfloat16)


def small(model_type: str, **config: Any) -> Architecture:
    shapes = {"gate": (6, 4), "up": (6, 4), "down": (4, 6)}
    names = {f"model.layers.0.mlp.{name}_proj.weight": shape for name, shape in shapes.items()}
    specs = {name: TensorSpec(name, "F32", shape) for name, shape in names.items()}
    return Architecture({"model_type": model_type, "num_hidden_layers": 4, **config}, specs)


def test_an_engine_without_these_biases_is_warned_of() -> None:
    plan = MlpBias().plan(small("helium"), {0: torch.ones(4)})
    assert "whose own `helium` class has no MLP biases drops them" in plan.notes[0]


@pytest.mark.parametrize(
    ("config", "factor"), [({}, 0.7), ({"scale_depth": None}, 1.0), ({"scale_depth": 3}, 1.5)], ids=str
)
def test_the_factor_is_that_of_transformers(config: dict[str, Any], factor: float) -> None:
    import transformers

    assert small("minicpm3", **config).output_factor == pytest.approx(factor)
    theirs = transformers.MiniCPM3Config(num_hidden_layers=4, **config)
    assert theirs.scale_depth / 2 == pytest.approx(factor)


@pytest.mark.parametrize(
    ("model_type", "config"), [("granite", {"residual_multiplier": 0}), ("minicpm3", {"scale_depth": 0.0})]
)
@pytest.mark.parametrize("biases", [True, False])
def test_a_factor_of_zero_is_refused(model_type: str, config: dict[str, float], biases: bool) -> None:
    architecture = small(model_type, mlp_bias=biases, **config)
    if biases:
        name = "model.layers.0.mlp.down_proj.bias"
        architecture = Architecture(architecture.config, {name: TensorSpec(name, "F32", (4,))})
    with pytest.raises(IncompatibleError, match="multiplies its MLP's output by 0"):
        plan_for(architecture, {0: torch.ones(4)})
