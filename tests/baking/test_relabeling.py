"""Qwen2 and Mistral as Llama: what the configuration says afterwards, what hinders it, and the tokenizer beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from personality.baking.architecture import Architecture
from personality.baking.bake import bake
from personality.baking.baked_comparison import compare_baked
from personality.baking.relabeling import CLASSES, Relabeling, relabeled
from personality.baking.routes import fitting
from personality.baking.self_test import random_model
from personality.builds.comparison import log_probabilities, probe_tokens
from personality.builds.writer import write_checkpoint
from personality.manifests.tensor_file import TensorSpec
from personality.model import load_model, load_tokenizer
from personality.vectors.checkpoint import Checkpoint
from tests.baking.architectures import config_of

CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def small(model_type: str, **config: Any) -> Architecture:
    shapes = {"gate": (6, 4), "up": (6, 4), "down": (4, 6)}
    names = {f"model.layers.0.mlp.{name}_proj.weight": shape for name, shape in shapes.items()}
    specs = {name: TensorSpec(name, "F32", shape) for name, shape in names.items()}
    return Architecture({"model_type": model_type, "hidden_size": 4, "num_attention_heads": 2, **config}, specs)


def write(base: Path, folder: Path, steering: Any, dtype: torch.dtype) -> dict[str, Any]:
    folder.mkdir()
    baked = bake(Checkpoint(base), steering, dtype)
    assert baked.plan.route == "relabeling"
    write_checkpoint(baked, folder, config=baked.plan.config)
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def settings_of(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}


@pytest.mark.parametrize("kind", list(CLASSES))
def test_what_a_configuration_leaves_out_means_what_it_meant(kind: str) -> None:
    """The classes take different things for granted; a setting that differs and is not written would be lost."""
    theirs = settings_of(transformers.AutoConfig.for_model(kind, sliding_window=None, num_attention_heads=64))
    written = {name: value for name, value in relabeled({"model_type": kind}).items() if name != "model_type"}
    ours = settings_of(transformers.LlamaConfig(**written, num_attention_heads=64))
    shared = theirs.keys() & ours.keys()
    assert len(shared) > 20
    assert {name: theirs[name] for name in shared} == {name: ours[name] for name in shared}


@pytest.mark.parametrize(
    "more",
    [
        {"tie_word_embeddings": True, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
        {"num_key_value_heads": 4, "max_window_layers": 1, "sliding_window": 8, "use_sliding_window": False},
    ],
    ids=["tied", "yarn", "window-off"],
)
def test_a_qwen2_of_another_kind_stays_what_it_is(more: dict[str, Any], tmp_path: Path) -> None:
    settings = {**config_of("qwen2").to_dict(), **more, "layer_types": None}
    if more.keys() & {"rope_theta", "rope_scaling"}:
        settings.pop("rope_parameters")
    config = transformers.Qwen2Config(**settings)
    steering = random_model(config, tmp_path / "base", dtype=torch.float32)
    write(tmp_path / "base", tmp_path / "out", steering, torch.float32)
    ids = probe_tokens(97)
    model = load_model(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM"
    found = log_probabilities(model, ids)
    compared = compare_baked(found, load_model(tmp_path / "base"), steering, ids, tolerance=0.0, rounding=torch.float32)
    assert compared.agreement.greatest_difference < 1e-5
    assert compared.effect > 0.3


def test_what_is_written(tmp_path: Path) -> None:
    steering = random_model(config_of("qwen2"), tmp_path / "base", dtype=torch.bfloat16)
    config = write(tmp_path / "base", tmp_path / "out", steering, torch.bfloat16)
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["attention_bias"] is config["mlp_bias"] is True
    assert not config.keys() & {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
    before, after = load_file(tmp_path / "base/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    new = {f"model.layers.{n}.{part}.bias" for n in range(3) for part in ("self_attn.o_proj", "mlp.gate_proj")}
    new |= {f"model.layers.{n}.mlp.{part}_proj.bias" for n in range(3) for part in ("up", "down")}
    assert after.keys() - before.keys() == new
    acting = {f"model.layers.{item.layer}.mlp.down_proj.bias": item.vector.bfloat16() for item in steering}
    assert all(torch.equal(after[name], acting.get(name, torch.zeros_like(after[name]))) for name in new)


def test_a_mistral_gets_no_attention_biases(tmp_path: Path) -> None:
    steering = random_model(config_of("mistral"), tmp_path / "base", dtype=torch.bfloat16)
    config = write(tmp_path / "base", tmp_path / "out", steering, torch.bfloat16)
    assert (config["attention_bias"], config["mlp_bias"]) == (False, True)
    assert not any("self_attn" in name and "bias" in name for name in Checkpoint(tmp_path / "out").specs)


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("mistral", {}, "sliding window .4096 tokens."),
        ("mistral", {"sliding_window": 32}, "sliding window .32 tokens."),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 32}, "`use_sliding_window: true`, 32 tokens"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding window .1 layers."),
        ("qwen2", {"hidden_act": "gelu"}, "activation is `gelu`"),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 8}}, "no `dual_chunk_attention_config`"),
        ("qwen2", {"architectures": ["Qwen2ForSequenceClassification"]}, "not `Qwen2ForCausalLM`"),
        ("qwen2", {"num_attention_heads": 3}, "3 heads divide; this one is 4"),
        ("qwen2", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "by kind of layer"),
        ("qwen2", {"text_config": {"model_type": "qwen2"}}, "part of a larger one"),
    ],
)
def test_what_llama_cannot_do_is_a_hindrance(kind: str, config: dict[str, Any], reason: str) -> None:
    assert re.search(reason, Relabeling().hindrance(small(kind, **config)))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"sliding_window": 4096}),
        ("qwen2", {"layer_types": ["full_attention"] * 2, "architectures": ["Qwen2ForCausalLM"]}),
    ],
)
def test_nothing_hinders_it_without_a_window(kind: str, config: dict[str, Any]) -> None:
    assert Relabeling().hindrance(small(kind, **config)) == ""


@pytest.fixture
def qwen2(tmp_path: Path) -> Path:
    """A small Qwen2 with a tokenizer of its own class and a chat template."""
    letters = sorted({chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 324))})
    vocabulary = {token: number for number, token in enumerate([*letters, "he", "hel", "Ġt", "Ġth"])}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[("h", "e"), ("he", "l"), ("Ġ", "t"), ("Ġt", "h")],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHAT
    folder = tmp_path / "base"
    config = config_of("qwen2")
    config.vocab_size = len(tokenizer)
    random_model(config, folder, dtype=torch.bfloat16)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_tokenizer_stays_what_it_is(qwen2: Path, tmp_path: Path) -> None:
    steering = random_model(transformers.AutoConfig.from_pretrained(qwen2), tmp_path / "other", dtype=torch.bfloat16)
    write(qwen2, tmp_path / "out", steering, torch.bfloat16)
    before, after = load_tokenizer(qwen2), load_tokenizer(tmp_path / "out")
    assert type(before).__name__ == type(after).__name__ == "Qwen2Tokenizer"
    text = "hello the  théâtre 123<|im_end|>\n"
    assert before(text)["input_ids"] == after(text)["input_ids"]
    assert before.chat_template == after.chat_template == CHAT


def test_a_tokenizer_that_would_change_is_a_hindrance(qwen2: Path) -> None:
    """Where only the model's type says of which class it is."""
    model = json.loads((qwen2 / "tokenizer.json").read_text())["model"]
    (qwen2 / "vocab.json").write_text(json.dumps(model["vocab"]))
    (qwen2 / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (qwen2 / name).unlink()
    assert load_tokenizer(qwen2)("hello")["input_ids"]
    architecture = Architecture(json.loads((qwen2 / "config.json").read_text()), Checkpoint(qwen2).specs, qwen2)
    assert "its tokenizer would be another one beside `llama`" in Relabeling().hindrance(architecture)
    assert fitting(architecture) == ["swiglu-widening"]
