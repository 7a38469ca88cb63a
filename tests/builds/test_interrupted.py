"""A build that is killed, or meets a full disk, leaves nothing under a final name, and the next one is whole.

Real processes: killed by SIGKILL in the middle of a tensor, between tensors, shards and links.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from personality.builds.build import BuildRecord, build, build_path
from personality.builds.writer import BUILD_RECORD
from personality.manifests.atomic import TEMPORARY_PREFIX, leftovers
from personality.manifests.errors import FallenApartError, PersonaError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import digest_file
from personality.manifests.version import Version
from personality.versions.changes import add, compose_by, rescale
from tests.conftest import fine_tuned, run_persona, tiny_checkpoint
from tests.test_kill import Killer

SHARD_BYTES = 15_000
CALLS = ["_write", "link", "fsync", "replace", "rename", "mkdir"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`polite` changes every tensor of a tiny Llama, `brief` those of layer 1; composed by TIES."""
    folder = tmp_path_factory.mktemp("made")
    base = tiny_checkpoint("llama", folder / "base")
    root = folder / "repository"
    assert run_persona("init", "--base", str(base), str(root))[0] == 0
    for seed, (name, only) in enumerate({"polite": "", "brief": "layers.1."}.items()):
        tuned = fine_tuned(base, folder / name, seed=seed, only=only)
        assert run_persona("import", name, str(tuned), "-C", str(root))[0] == 0
    repository = Repository(root)
    add(repository, VectorLabel("polite"), 0.6)
    add(repository, VectorLabel("brief"), 0.5)
    compose_by(repository, Composition(method="ties", density=0.4))
    return root


@pytest.fixture
def repository(made: Path, tmp_path: Path) -> Repository:
    return Repository(shutil.copytree(made, tmp_path / "repository"))


@pytest.fixture(scope="module")
def killer(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    folder = tmp_path_factory.mktemp("warm")
    server = Killer(folder / "output")
    server.warm(command(), shutil.copytree(made, folder / "repository"))
    yield server
    server.close()


def command(*more: str) -> list[str]:
    return ["build", "head", "--shard-gb", str(SHARD_BYTES / 1e9), *more]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def next_version(repository: Repository) -> tuple[Version, Path, dict[str, bytes]]:
    """A version that is built, and after it one that shares most of its tensors; the first one's build."""
    first = rescale(repository, "brief", 0.4).version
    path = build(repository, first, shard_bytes=SHARD_BYTES).path
    return rescale(repository, "brief", -0.7).version, path, content(path)


def points(count: int, wanted: int) -> Sequence[int]:
    """So many numbers from 1 to a count, the first and the last among them."""
    return sorted({1 + round(step * (count - 1) / (wanted - 1)) for step in range(wanted)})


def check_left(repository: Repository, final: Path, wanted: dict[str, bytes]) -> None:
    """Nothing lies under the final name; what lies in a temporary folder under one is whole."""
    assert not final.exists()
    for folder in final.parent.iterdir():
        if folder.name.startswith(TEMPORARY_PREFIX):
            for path in folder.iterdir():
                assert path.name.startswith(TEMPORARY_PREFIX) or path.read_bytes() == wanted[path.name], path


@pytest.mark.parametrize("takes_over", [False, True], ids=["fresh", "from another"])
def test_killed_while_it_writes_shards(killer: Killer, repository: Repository, takes_over: bool) -> None:
    if takes_over:
        version, other, before = next_version(repository)
    else:
        version = rescale(repository, "brief", 0.45).version
    final = build_path(repository, version)
    for _ in range(2):  # the second time with every digest remembered, as after a kill
        whole = killer.run(command(), repository.root, calls=CALLS)
        assert whole["code"] == 0, whole["output"]
        wanted = content(final)
        shutil.rmtree(final)
    assert ("taken over from another build" in whole["output"]) == takes_over
    assert len([name for name in wanted if name.endswith(".safetensors")]) > 4
    died = 0
    for point in points(whole["count"], 14):
        answer = killer.run(command(), repository.root, at=point, calls=CALLS)
        assert answer["killed"], answer
        died += 1
        if not final.exists():
            check_left(repository, final, wanted)
        else:  # it has its name, and what was killed only remembers digests
            assert point > whole["count"] - 8
            assert content(final) == wanted
            shutil.rmtree(final)
        if takes_over:
            assert content(other) == before
    assert died >= 12
    assert leftovers(final.parent) != []
    answer = killer.run(command(), repository.root)
    assert answer["code"] == 0, answer["output"]
    assert content(final) == wanted
    assert run_persona("gc", "--yes", "-C", str(repository.root))[0] == 0
    assert leftovers(repository.root) == []
    assert content(final) == wanted


@pytest.mark.parametrize("limit", [9_000, 13_000])
@pytest.mark.parametrize("takes_over", [False, True], ids=["fresh", "from another"])
def test_a_full_disk(killer: Killer, repository: Repository, takes_over: bool, limit: int) -> None:
    """Files cannot grow beyond a size below that of a shard: in a real process, as on a full disk."""
    if takes_over:
        version, other, before = next_version(repository)
    else:
        version = rescale(repository, "brief", 0.45).version
    final = build_path(repository, version)
    answer = killer.run(command(), repository.root, limit=limit)
    assert not answer["killed"]
    assert answer["code"] == 1, answer["output"]
    assert "cannot write" in answer["output"]
    assert "File too large" in answer["output"]
    assert "free some room" in answer["output"]
    assert "Traceback" not in answer["output"]
    assert leftovers(repository.root) == []
    assert not final.exists()
    if takes_over:
        assert content(other) == before
    assert killer.run(command(), repository.root)["code"] == 0
    assert all(digest_file(final / name) == said for name, said in BuildRecord.read(final / BUILD_RECORD).files.items())


def test_a_full_disk_leaves_the_build_that_is_there(killer: Killer, repository: Repository) -> None:
    version = rescale(repository, "brief", 0.45).version
    path = build(repository, version, shard_bytes=SHARD_BYTES).path
    before = content(path)
    answer = killer.run(command("--again"), repository.root, limit=9_000)
    assert answer["code"] == 1, answer["output"]
    assert content(path) == before
    assert leftovers(repository.root) == []


def refuse(*_: object, **__: object) -> None:
    raise OSError(1, "Operation not permitted")


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_when_a_shard_is_copied(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    version, other, before = next_version(repository)
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(PersonaError, match=r"cannot write .*: No space left on device"):
        build(repository, version, shard_bytes=SHARD_BYTES)
    assert leftovers(repository.root) == []
    assert not build_path(repository, version).exists()
    assert content(other) == before


def test_a_copied_shard_is_read_only(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    version, _, _ = next_version(repository)
    monkeypatch.setattr(os, "link", refuse)
    built = build(repository, version, shard_bytes=SHARD_BYTES)
    assert built.taken_bytes > 0
    assert {path.stat().st_mode & 0o777 for path in built.path.glob("*.safetensors")} == {0o444}


def test_a_build_that_goes_while_another_takes_from_it(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed by `gc`, say: what is missing is made."""
    version, other, _ = next_version(repository)
    wanted = content(build(repository, version, shard_bytes=SHARD_BYTES, again=True).path)
    shutil.rmtree(build_path(repository, version))
    real = os.link
    linked: list[Any] = []

    def link(source: Path, target: Path) -> None:
        if linked:
            shutil.rmtree(other, ignore_errors=True)
        linked.append(source)
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    path = build(repository, version, shard_bytes=SHARD_BYTES).path
    assert len(linked) > 1
    assert content(path) == wanted


@pytest.mark.parametrize("takes_over", [False, True], ids=["fresh", "from another"])
def test_weights_that_overflow_leave_nothing(repository: Repository, takes_over: bool) -> None:
    if takes_over:
        next_version(repository)
    rescale(repository, "polite", 0.0)
    composition = Composition.model_validate({"method": "ties", "density": 0.4, "lambda": 1e39})
    version = compose_by(repository, composition).version
    with pytest.raises(FallenApartError, match=r"composing `model\.layers\.1\..* gives NaN or infinite values in BF16"):
        build(repository, version, shard_bytes=SHARD_BYTES)
    assert leftovers(repository.root) == []
    assert not build_path(repository, version).exists()
