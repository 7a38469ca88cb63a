"""Exported adapters in the real vLLM: the same log-probabilities as the version composed in transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from personality.builds.adapter_check import divergence
from personality.builds.adapter_targets import _HEAD_TAKEN
from personality.builds.comparison import agreement, log_probabilities, probe_tokens
from personality.builds.lora_export import RANKS, export_lora
from personality.composition.opening import composer_of
from personality.manifests.errors import PersonaError
from personality.manifests.repository import Repository
from personality.model import load_composed
from personality.serving.engine import Engine
from personality.serving.vllm_environment import VllmEnvironment
from personality.versions.history import History
from tests.adapters import LINEAR, random_adapter, to_float32, using
from tests.conftest import fine_tuned, run_persona
from tests.vllm.models import vllm_checkpoint

GATED_DELTA = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")


def two_adapters(root: Path, kind: str, first: tuple[str, ...], second: tuple[str, ...]) -> Repository:
    """A float32 base of an architecture with two random adapters at different scales, one in layers 1-2 only."""
    base = to_float32(vllm_checkpoint(kind, root / "base"))
    one = random_adapter(base, root / "one", rank=4, targets=first, seed=1)
    two = random_adapter(base, root / "two", rank=6, targets=second, seed=2)
    return using(root, ("brisk", one, "--scale 0.6"), ("calm", two, "--scale -0.4 --layers 1-2"))


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("llama", (*LINEAR, "lm_head"), ("q_proj", "up_proj")),
        ("qwen3", (*LINEAR, "lm_head"), ("v_proj", "down_proj")),
        ("qwen2", LINEAR, ("k_proj", "gate_proj")),
        ("mistral", LINEAR, ("q_proj",)),
        ("granite", (*LINEAR, "lm_head"), ("o_proj",)),
    ],
)
def test_vllm_answers_as_the_composed_version(
    kind: str, first: tuple[str, ...], second: tuple[str, ...], stock: Engine, tmp_path: Path
) -> None:
    """Nothing is rounded in a float32 base, so adapter and composed weights are the same model."""
    repository = two_adapters(tmp_path, kind, first, second)
    version = History(repository).head()
    result = export_lora(repository, version, tmp_path / "out")
    assert result.exact
    assert (result.rank, result.max_lora_rank) == (10, 16)
    assert result.agreement.agreement.greatest_difference < 1e-4
    assert result.agreement.effect.greatest_difference > 0.5
    wanted = log_probabilities(load_composed(composer_of(repository, version.personality)), probe_tokens(272))
    stock.load(tmp_path / "base", enable_lora=True, max_lora_rank=result.max_lora_rank)
    served = stock.all_log_probabilities(probe_tokens(272), lora=result.path)
    same = agreement(served, wanted[:, :-1])
    assert same.greatest_difference < 1e-4
    assert same.greedy == 1
    rows = probe_tokens(272).tolist()
    assert stock.generate(rows, 6, lora=result.path) != stock.generate(rows, 6)
    # The same folder, written anew at a lower rank, is another adapter.
    less = export_lora(repository, version, tmp_path / "out", rank=3, force=True)
    served = stock.all_log_probabilities(probe_tokens(272), lora=less.path)
    assert divergence(wanted[:, :-1], served) == pytest.approx(less.agreement.divergence, rel=0.2)
    assert 0.05 < less.relative < 0.95


def test_gated_delta_layers(stock: Engine, tmp_path: Path) -> None:
    """In bfloat16, the only one that vLLM has for them here; held to the distance that bfloat16 makes anyway."""
    base = vllm_checkpoint("qwen3_5", tmp_path / "base")
    adapter = random_adapter(base, tmp_path / "one", rank=8, targets=(*LINEAR, *GATED_DELTA), seed=1)
    repository = using(tmp_path, ("brisk", adapter, "--scale 0.5"))
    result = export_lora(repository, History(repository).head(), tmp_path / "out")
    assert result.exact
    wanted = load_composed(composer_of(repository, History(repository).head().personality))
    ids = probe_tokens(272)
    expected = log_probabilities(wanted, ids)[:, :-1]
    stock.load(base, dtype="bfloat16", enable_lora=True, max_lora_rank=8)
    served = stock.all_log_probabilities(ids, lora=result.path)
    lost = divergence(expected, log_probabilities(wanted.bfloat16(), ids)[:, :-1])
    assert divergence(expected, served) < 4 * lost
    assert result.agreement.effect_divergence > 20 * divergence(expected, served)


def test_a_dense_vector_and_ties(stock: Engine, tmp_path: Path) -> None:
    """A dense change of linear layers, cut down: vLLM answers as PEFT does, near the version."""
    base = to_float32(vllm_checkpoint("llama", tmp_path / "base"))
    tuned = fine_tuned(base, tmp_path / "tuned", size=0.05, only="proj")
    repository = using(tmp_path, ("brisk", tuned, "--scale 0.7"))
    assert run_persona("method", "ties", "--density", "0.5", cwd=tmp_path)[0] == 0
    result = export_lora(repository, History(repository).head(), tmp_path / "out", rank=48)
    assert not result.exact
    assert any("ties" in note for note in result.notes)
    assert result.agreement.divergence < result.agreement.effect_divergence / 4
    stock.load(base, enable_lora=True, max_lora_rank=64)
    served = stock.all_log_probabilities(probe_tokens(272), lora=result.path)
    wanted = log_probabilities(
        load_composed(composer_of(repository, History(repository).head().personality)), probe_tokens(272)
    )
    assert divergence(wanted[:, :-1], served) == pytest.approx(result.agreement.divergence, rel=0.1)


def test_trained_on_the_playground_and_verified(vllm: VllmEnvironment, playground: Path, tmp_path: Path) -> None:
    """Two behaviors trained with `--lora`, exported with vLLM's own verdict."""
    root = Path(shutil.copytree(playground, tmp_path / "play"))
    for name, general in (("warm", "general-warm"), ("concise", "general-concise")):
        command = ["train", name, "--data", f"data/{name}.jsonl", "--general", f"data/{general}.jsonl"]
        code, _, err = run_persona(
            *command, "--lora", "4", "--examples", "80", "--allow-repeats", "--probe-rows", "0", cwd=root
        )
        assert code == 0, err
        assert run_persona("add", name, "--scale", "0.9", cwd=root)[0] == 0
    repository = Repository(root)
    result = export_lora(repository, History(repository).head(), tmp_path / "out", verify=vllm)
    assert result.exact
    assert result.rank == 8
    assert result.agreement.vllm is not None
    assert result.agreement.vllm.greatest_difference < 1e-4
    assert result.agreement.vllm_version


def test_an_adapter_that_vllm_misreads_is_not_kept(
    vllm: VllmEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that leaves a tensor's product out without a word."""
    repository = two_adapters(tmp_path, "llama", LINEAR, ("q_proj",))
    real = Engine.all_log_probabilities

    def partly(self: Engine, rows: torch.Tensor, *, lora: Path | None = None) -> torch.Tensor:
        assert lora is not None
        path = lora / "adapter_model.safetensors"
        tensors = load_file(path)
        for name in tensors:
            if "layers.2.mlp.down_proj.lora_B" in name:
                tensors[name].zero_()
        from safetensors.torch import save_file

        save_file(tensors, path)
        return real(self, rows, lora=lora)

    monkeypatch.setattr(Engine, "all_log_probabilities", partly)
    with pytest.raises(PersonaError, match="does not answer as PEFT does"):
        export_lora(repository, History(repository).head(), tmp_path / "out", verify=vllm)
    assert not (tmp_path / "out").exists()


ASK = """
import json, sys
from typing import get_args
from vllm.config.lora import MaxLoRARanks
from vllm.model_executor.models.registry import ModelRegistry

heads = [n for n in json.loads(sys.argv[1]) if "lm_head" in ModelRegistry._try_load_model_cls(n).embedding_modules]
print(json.dumps({"ranks": list(get_args(MaxLoRARanks)), "heads": heads}))
"""


def test_the_tables_are_those_of_this_vllm(vllm: VllmEnvironment) -> None:
    """Ranks that a server can be started with, and classes that take an adapter of the output head."""
    names = sorted([*_HEAD_TAKEN, "Qwen2ForCausalLM", "MistralForCausalLM", "GptOssForCausalLM"])
    done = subprocess.run(
        [str(vllm.python), "-c", ASK, json.dumps(names)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_PLUGINS": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert tuple(rank for rank in found["ranks"] if rank > 1) == RANKS
    assert set(found["heads"]) == _HEAD_TAKEN
