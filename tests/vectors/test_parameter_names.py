from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from personality.vectors.checkpoint import Checkpoint
from personality.vectors.parameter_names import parameter_names

Make = Callable[..., Path]


def test_one_tensor_for_each_parameter(make_checkpoint: Make) -> None:
    checkpoint = Checkpoint(make_checkpoint("qwen3"))
    (view,) = parameter_names(checkpoint, checkpoint.folder)
    assert view.unread == frozenset()
    assert view.tensors == {name: [name] for name in checkpoint.specs}


def test_experts_that_the_class_packs(make_checkpoint: Make) -> None:
    checkpoint = Checkpoint(make_checkpoint("qwen3_moe"))
    (view,) = parameter_names(checkpoint, checkpoint.folder)
    prefix = "model.layers.1.mlp.experts"
    assert sorted(view.tensors[f"{prefix}.down_proj"]) == [f"{prefix}.{n}.down_proj.weight" for n in range(4)]
    assert len(view.tensors[f"{prefix}.gate_up_proj"]) == 8
    assert sorted(name for names in view.tensors.values() for name in names) == sorted(checkpoint.specs)
    assert view.transposed == frozenset()


def test_stacked_matrices_that_lie_the_other_way(make_checkpoint: Make) -> None:
    checkpoint = Checkpoint(make_checkpoint("gpt_oss"))
    (view,) = parameter_names(checkpoint, checkpoint.folder)
    assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.2.mlp.experts.down_proj"} <= view.transposed
    assert not any("self_attn" in name for name in view.transposed)


def test_what_a_class_leaves_out(make_checkpoint: Make) -> None:
    folder = make_checkpoint("qwen3_5_moe")
    path = folder / "model.safetensors"
    save_file({**load_file(path), "mtp.fc.weight": torch.ones(3)}, path, {"format": "pt"})
    whole, text = parameter_names(Checkpoint(folder), folder)
    assert whole.unread == {"mtp.fc.weight"}
    assert whole.tensors["model.visual.pos_embed.weight"] == ["model.visual.pos_embed.weight"]
    assert {name.split(".")[1] for name in text.unread} == {"visual", "fc"}
    assert text.tensors["model.norm.weight"] == ["model.language_model.norm.weight"]


def test_a_model_that_transformers_does_not_know(make_checkpoint: Make) -> None:
    folder = make_checkpoint("qwen3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "of-tomorrow"}))
    assert list(parameter_names(Checkpoint(folder), folder)) == []
    (folder / "config.json").unlink()
    assert list(parameter_names(Checkpoint(folder), folder)) == []
