"""Exports that the real vLLM has to agree with: what it loses without a word must not pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.builds.certificate import Certificate
from personality.builds.engine_check import check_folder
from personality.builds.export import export
from personality.builds.reference import reference_of
from personality.composition.opening import composer_of
from personality.manifests.atomic import leftovers
from personality.manifests.errors import CorruptError
from personality.manifests.repository import Repository
from personality.serving.engine import Engine
from personality.serving.vllm_environment import VllmEnvironment
from personality.versions.history import History
from tests.conftest import run_persona
from tests.vllm.models import vllm_checkpoint
from tests.vllm.versions import add_steering, weights_repository


@pytest.fixture(scope="module")
def llama_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_repository("llama", tmp_path_factory.mktemp("export")).root


@pytest.fixture
def llama(llama_template: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(llama_template, tmp_path / "repository")))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_verify_says_what_vllm_answers(llama: Repository, tmp_path: Path, vllm: VllmEnvironment) -> None:
    out = tmp_path / "out"
    arguments = ["export", "v3", "--to", "vllm", str(out), "--verify", "--vllm", str(vllm), "--shard-gb", "0.0001"]
    code, stdout, err = run_persona(*arguments, cwd=llama.root)
    assert code == 0, err
    assert (out / "model.safetensors.index.json").is_file()
    assert "vLLM 0.32.0, float32, beside the version composed in memory: greatest |Δ log-probability|" in stdout
    certificate = Certificate.read(out / Certificate.file_name)
    transformers, engine = certificate.checks
    assert transformers.engine.startswith("transformers ")
    assert engine.greatest_difference < engine.allowed == 1e-4
    assert engine.greedy == 1
    assert certificate.versions["vllm"] == "0.32.0"
    assert certificate.not_verified == ()
    assert certificate.in_weights == ("brief@1 × 2", "polite@1 × 0.8")


def test_a_missing_weight_does_not_pass_and_nothing_is_kept(
    llama: Repository, tmp_path: Path, vllm: VllmEnvironment
) -> None:
    """vLLM leaves what was in memory where a weight is not in the file."""

    def lose(stage: str) -> None:
        if stage == "running vLLM on it":
            (folder,) = (path for path in tmp_path.iterdir() if path.name.startswith(".") and path.is_dir())
            edit(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))

    with pytest.raises(CorruptError, match="does not answer as the version does"):
        export(llama, History(llama).head(), "vllm", tmp_path / "out", vllm=vllm, on_stage=lose)
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_biases_that_the_class_does_not_have_are_noticed(tmp_path: Path, stock: Engine, vllm: VllmEnvironment) -> None:
    """Qwen3's class in vLLM drops a `down_proj.bias` without a word, and with it the steering vector in it."""
    repository = weights_repository("qwen3", tmp_path)
    add_steering(repository)
    version = History(repository).head()
    composer = composer_of(repository, version.personality)
    export(repository, version, "vllm", tmp_path / "out", steering="leave-out")
    vectors = {item.layer: item.vector for item in composer.steering}
    biases = {
        f"model.layers.{layer}.mlp.down_proj.bias": vectors.get(layer, torch.zeros(64)).bfloat16() for layer in range(3)
    }
    edit(tmp_path / "out", lambda tensors: tensors.update(biases))
    with pytest.raises(CorruptError, match="log-probabilities differ by up to"):
        check_folder(tmp_path / "out", reference_of(composer), vllm, engine=stock)
    # It is the bias and nothing else that is missing.
    check_folder(tmp_path / "out", reference_of(composer.without_steering()), vllm, engine=stock)


def test_biases_that_are_not_in_the_file_are_noticed(tmp_path: Path, stock: Engine, vllm: VllmEnvironment) -> None:
    """A configuration that announces biases makes vLLM compute with whatever memory holds, often NaN."""
    base = vllm_checkpoint("llama-bias", tmp_path / "base")
    assert run_persona("init", "--base", "base", cwd=tmp_path)[0] == 0
    repository = Repository(tmp_path)
    version = History(repository).head()
    reference = reference_of(composer_of(repository, version.personality))
    assert check_folder(base, reference, vllm, engine=stock).greedy == 1
    shutil.copytree(base, tmp_path / "lossy")

    def lose(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".bias")]:
            del tensors[name]

    edit(tmp_path / "lossy", lose)
    with pytest.raises(CorruptError, match="log-probabilities differ by up to"):
        check_folder(tmp_path / "lossy", reference, vllm, engine=stock)


def test_the_plugin_is_asked_where_the_environment_has_it(
    llama: Repository, tmp_path: Path, stock: Engine, vllm: VllmEnvironment
) -> None:
    add_steering(llama, "candid")
    add_steering(llama, "brief-now", positions="decision", seed=1)
    done = export(llama, History(llama).head(), "vllm", tmp_path / "out", steering="plugin", vllm=vllm)
    (check,) = done.verified
    assert check.engine == "vLLM 0.32.0 with the plugin"
    assert check.what == "the version"
    assert check.greatest_difference < 1e-4
    assert done.certificate.needs_plugin == ("brief-now@1 × 0.5, layer 1", "candid@1 × 0.5, layer 1")
    assert done.certificate.not_verified == ()
    # Stock vLLM loads the folder as well: the steering file lies beside the weights and is none of them.
    with pytest.raises(CorruptError, match="does not answer as the version does"):
        check_folder(tmp_path / "out", done.certificate.reference, vllm, engine=stock)


def test_where_the_plugin_is_missing_the_weights_alone_are_verified(
    llama: Repository, tmp_path: Path, vllm: VllmEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personality.builds.certifying.plugin_in", lambda environment: False)
    add_steering(llama, positions="decision")
    done = export(llama, History(llama).head(), "vllm", tmp_path / "out", steering="plugin", vllm=vllm)
    (check,) = done.verified
    assert check.what == "the version without its steering vectors"
    assert check.greatest_difference < 1e-4
    assert done.certificate.not_verified[0].startswith("the plugin was not asked")
