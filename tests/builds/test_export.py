from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from personality import model
from personality.builds.build import BuildRecord, build
from personality.builds.export import export
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.atomic import leftovers
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.vectors.training.settings import make_settings
from personality.versions.changes import add, remove
from personality.versions.history import History
from tests.conftest import fine_tuned, run_persona
from tests.tiny_chat import chat_base, write_examples

TRAINED = ("llama", "llama-bias", "qwen3", "qwen3-tied", "qwen3_moe", "qwen3_5")


@pytest.fixture(scope="module", params=TRAINED)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository on a tiny base of each architecture, with `listening@1` trained there."""
    root = tmp_path_factory.mktemp(f"trained-{request.param}")
    chat_base(request.param, root / "repository/base")
    pairs, general = write_examples(root)
    code, _, err = run_persona("init", "--base", "base", cwd=root / "repository")
    assert code == 0, err
    # A random base babbles after large steps, which is what a guard stops.
    settings = make_settings(lr=2e-2, batch_size=5, rank=4, method="orpo", guard=False)
    job = TrainingJob(behavior="listening", data=pairs, general=general, settings=settings, probe_rows=0)
    made = train_behavior(Repository(root / "repository"), job)
    assert made.manifest.label == "listening@1"
    return root / "repository"


@pytest.fixture
def repository(trained: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(trained, tmp_path / "repository")))


def read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def test_a_trained_behavior_is_added_exported_and_removed(repository: Repository, tmp_path: Path) -> None:
    import transformers

    base = read(repository.root / "base")
    manifest = repository.manifests()[0]
    assert manifest.making.how == "train"
    assert manifest.making.settings["seed"] == 0
    assert [item.role for item in manifest.making.data] == ["behavior", "general"]
    assert 0 < len(manifest.tensors) < len(base)
    assert manifest.rounding is not None
    assert manifest.rounding.cosine > 0.9
    assert not any("embed_tokens" in name or "norm" in name for name in manifest.tensors)
    add(repository, VectorLabel("listening"), 0.8)
    result = export(repository, History(repository).head(), "vllm", tmp_path / "out")
    assert result.agreement is not None
    assert result.agreement.greatest_difference < 1e-5
    assert result.notes == ("vLLM itself was not started: the folder was loaded with transformers and compared",)
    found = read(tmp_path / "out")
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {n: (t.dtype, t.shape) for n, t in base.items()}
    changed = {name for name in base if not torch.equal(base[name], found[name])}
    assert changed == manifest.tensors.keys()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    turn = [{"role": "user", "content": "Rename 3."}]
    inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert exported.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    remove(repository, "listening")
    bare = read(build(repository, History(repository).head()).path)
    assert all(torch.equal(base[name].view(torch.uint8), bare[name].view(torch.uint8)) for name in base)


@pytest.fixture(scope="module")
def llama_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    base = chat_base("llama", root / "repository/base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    tuned = fine_tuned(base, root / "tuned")
    for arguments in (
        ["init", "--base", "base"],
        ["import", "polite", str(tuned)],
        ["add", "polite", "--scale", "0.5"],
    ):
        code, _, err = run_persona(*arguments, cwd=root / "repository")
        assert code == 0, err
    return root / "repository"


@pytest.fixture
def llama(llama_template: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(llama_template, tmp_path / "llama")))


def test_the_model_card_and_the_files(llama: Repository, tmp_path: Path) -> None:
    version = History(llama).head()
    export(llama, version, "hf", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nbase_model: base\nlicense: apache-2.0\n")
    assert version.id in card
    assert "| polite@1 | 0.5 | all | import-checkpoint |" in card
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (llama.root / "base" / name).read_bytes()
    code, out, _ = run_persona("verify", version.label, str(tmp_path / "out"), "-C", str(llama.root))
    assert code == 0
    assert "bit for bit" in out


def test_a_folder_in_the_way(llama: Repository, tmp_path: Path) -> None:
    version = History(llama).head()
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(PersonaError, match="exists and is no export of this program") as caught:
            export(llama, version, "hf", out, force=force)
        assert "nothing was touched" in caught.value.hint
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "thesis.txt").unlink()
    export(llama, version, "hf", out)
    with pytest.raises(PersonaError, match="holds an earlier export") as caught:
        export(llama, version, "hf", out)
    assert "--force" in caught.value.hint
    before = (out / BuildRecord.file_name).read_bytes()
    export(llama, History(llama).find("v1"), "hf", out, force=True)
    assert (out / BuildRecord.file_name).read_bytes() != before
    assert leftovers(tmp_path) == []


def test_a_file_in_the_way(llama: Repository, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PersonaError, match="exists and is no export"):
        export(llama, History(llama).head(), "hf", tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "a file"


def test_an_export_that_does_not_reload_is_not_kept(
    llama: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a bit of the weights between writing and reading."""
    real = model.load_model

    def damaged(folder: Path) -> Any:
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-4001:] = bytes(4001)
        path.write_bytes(data)
        return real(folder)

    monkeypatch.setattr("personality.builds.reloaded.load_model", damaged)
    with pytest.raises(CorruptError, match="reloaded, is not the version: log-probabilities differ by up to") as caught:
        export(llama, History(llama).head(), "hf", tmp_path / "out")
    assert "nothing was kept" in caught.value.hint
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_what_vllm_needs(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = make_checkpoint("llama")
    config = json.loads((base / "config.json").read_text())
    del config["architectures"]
    for name, settings in (("plain", config), ("named", {**config, "architectures": ["LlamaForCausalLM"]})):
        (base / "config.json").write_text(json.dumps(settings))
        code, _, err = run_persona("init", "--base", str(base), str(tmp_path / name))
        assert code == 0, err
        repository = Repository(tmp_path / name)
        first = History(repository).head()
        if name == "plain":
            with pytest.raises(IncompatibleError, match="names no `architectures`") as caught:
                export(repository, first, "vllm", tmp_path / "out")
            assert "--to hf" in caught.value.hint
            assert not (tmp_path / "out").exists()
        else:
            notes = export(repository, first, "vllm", tmp_path / "out").notes
            assert any("no chat template" in note for note in notes)


def test_an_unknown_target(llama: Repository, tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="there is no export target `gguf`") as caught:
        export(llama, History(llama).head(), "gguf", tmp_path / "out")
    assert caught.value.hint == "targets: hf, vllm"
    assert not (tmp_path / "out").exists()
