from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from personality.playground.recipe import main

SMALL = [
    "--steps=40",
    "--hidden=32",
    "--layers=2",
    "--heads=2",
    "--inner=64",
    "--vocabulary=512",
    "--batch-tokens=512",
    "--warmup=5",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_small_run_writes_a_checkpoint_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "base"), *SMALL]) == 0
    written = contents(tmp_path / "base")
    assert {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } == set(written)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (tmp_path / "base").iterdir())
    config = json.loads(written["config.json"])
    assert config["model_type"] == "qwen3"
    assert config["eos_token_id"] == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert model.dtype == torch.bfloat16
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert "license: apache-2.0" in written["README.md"].decode()
    losses = [float(line.split()[-1]) for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert losses
    assert losses[-1] < 6


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    settings = [*SMALL, "--hidden=64", "--inner=128", "--steps=400"]
    main([str(tmp_path / "one"), *settings, "--seed", "3"])
    main([str(tmp_path / "two"), *settings, "--seed", "3"])
    main([str(tmp_path / "other"), *settings, "--seed", "4"])
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert set(one) == set(other)
    assert one["model.safetensors"] != other["model.safetensors"]
