from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from personality.builds.build import BuildRecord, Built, build, build_path
from personality.builds.writer import Progress, shards_of
from personality.manifests.atomic import leftovers
from personality.manifests.errors import PersonaError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec
from personality.manifests.version import Version
from personality.versions.changes import add, compose_by
from personality.versions.history import History
from tests.conftest import fine_tuned, run_persona


@pytest.fixture
def repository(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Repository:
    """Two vectors on a tiny Llama, composed by TIES."""
    base = make_checkpoint("llama")
    (base / "LICENSE").write_text("as you like")
    root = tmp_path / "repository"
    commands = [["init", "--base", str(base), str(root)]]
    for seed, name in ((1, "polite"), (2, "brief")):
        commands.append(["import", name, str(fine_tuned(base, tmp_path / name, seed=seed)), "-C", str(root)])
    for arguments in commands:
        code, _, err = run_persona(*arguments)
        assert code == 0, err
    repository = Repository(root)
    add(repository, VectorLabel("polite"), 0.6)
    add(repository, VectorLabel("brief"), -0.3)
    compose_by(repository, Composition(method="ties", density=0.4))
    return repository


def head(repository: Repository) -> Version:
    return History(repository).head()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_folder_with_everything(repository: Repository) -> None:
    version = head(repository)
    built = build(repository, version)
    path = built.path
    assert built.new
    assert path == build_path(repository, version)
    record = BuildRecord.read(path / BuildRecord.file_name)
    assert record.version == version.id
    assert record.personality == version.personality.id
    assert record.environment["torch"] == torch.__version__
    found = digests(path)
    del found[BuildRecord.file_name]
    assert found == record.files
    assert {"model.safetensors", "config.json", "generation_config.json", "LICENSE"} <= found.keys()
    assert leftovers(repository.root) == []


def test_the_config_is_the_base_s_byte_for_byte(repository: Repository) -> None:
    path = build(repository, head(repository)).path
    base = Path(repository.config().base.source)
    for name in ("config.json", "generation_config.json"):
        assert (path / name).read_bytes() == (base / name).read_bytes()
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_build_is_made_once(repository: Repository) -> None:
    version = head(repository)
    path = build(repository, version).path
    before = (path / "model.safetensors").stat().st_ino
    assert build(repository, version) == Built(path, new=False)
    assert (path / "model.safetensors").stat().st_ino == before
    assert build(repository, version, again=True) == Built(path, new=True)
    assert build(repository, version, shard_bytes=50_000).new
    assert (path / "model.safetensors.index.json").is_file()


def test_two_processes_write_the_same_bytes(repository: Repository) -> None:
    """With another number of threads and another order of hashing in each."""
    found = []
    for threads, seed in ((1, 0), (2, 1)):
        done = subprocess.run(
            [sys.executable, "-m", "personality", "build", "v4", "--again", "-C", str(repository.root)],
            env={
                "PATH": "",
                "OMP_NUM_THREADS": str(threads),
                "PYTHONHASHSEED": str(seed),
                "HF_HUB_OFFLINE": "1",
                "HOME": str(repository.root),
            },
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.append(digests(build_path(repository, head(repository))))
    assert found[0] == found[1]
    assert "model.safetensors" in found[0]


def test_shards_hold_the_same_tensors(repository: Repository) -> None:
    version = head(repository)
    path = build(repository, version).path
    whole = load_file(path / "model.safetensors")
    path = build(repository, version, shard_bytes=20_000).path
    index = json.loads((path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 1
    found = {}
    for name in files:
        tensors = load_file(path / name)
        assert {key for key, file in index["weight_map"].items() if file == name} == tensors.keys()
        found.update(tensors)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())


def test_progress_ends_at_the_total(repository: Repository) -> None:
    told: list[Progress] = []
    build(repository, head(repository), on_progress=told.append)
    assert [step.done for step in told] == sorted(step.done for step in told)
    assert told[-1].done == told[-1].total
    assert len({step.what for step in told}) == len(told) == 30


def test_an_interrupted_build_leaves_the_old_one(repository: Repository) -> None:
    version = head(repository)
    path = build(repository, version).path
    before = digests(path)

    def interrupt(progress: Progress) -> None:
        if progress.done > progress.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(repository, version, again=True, on_progress=interrupt)
    assert digests(path) == before
    assert leftovers(repository.root) == []


def test_a_disk_that_is_too_small(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage

    def small(folder: Path) -> object:
        return real(folder)._replace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", small)
    with pytest.raises(PersonaError, match=r"has 0\.00 GB free, the checkpoint takes 0\.00 GB") as caught:
        build(repository, head(repository))
    assert "persona gc" in caught.value.hint
    assert leftovers(repository.root) == []
    assert not build_path(repository, head(repository)).exists()


def test_shards_of() -> None:
    specs = [TensorSpec(str(n), "U8", (size,)) for n, size in enumerate([3, 3, 9, 1, 1, 0, 4])]
    shards = [[spec.name for spec in shard] for shard in shards_of(specs, 5)]
    assert shards == [["0"], ["1"], ["2"], ["3", "4", "5"], ["6"]]
    assert [len(shard) for shard in shards_of(specs, 100)] == [7]
