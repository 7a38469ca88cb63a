from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.builds.build import Built, build, build_path
from personality.gc import collect, find_garbage
from personality.manifests.errors import PersonaError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.manifests.vector_store import stored_ids
from personality.versions.changes import add, rescale
from personality.versions.history import History
from personality.versions.undoing import redo, undo

Persona = Callable[..., tuple[int, str, str]]


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    return Repository(repository_copy)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def everything(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.name != "lock"}


def test_a_clean_repository_has_no_garbage(repository: Repository, persona: Persona) -> None:
    assert find_garbage(repository) == []
    code, out, _ = persona("gc", cwd=repository.root)
    assert (code, out) == (0, "nothing to remove\n")


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(repository: Repository) -> None:
    dead = dead_process()
    left = [
        repository.root / f"versions/.tmp-x.json-{dead}-0a1b2c3d",
        repository.local / f"tmp/.tmp-train-{dead}",
        repository.local / f"builds/.tmp-1234-5678-{dead}-0a1b2c3d",
    ]
    left[0].write_text("half")
    for folder in left[1:]:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(100))
        (folder / f".tmp-config.json-{dead}-00").write_bytes(bytes(11))
    alive = repository.root / f"versions/.tmp-y.json-{os.getpid()}-0a1b2c3d"
    alive.write_text("being written")
    foreign = repository.root / ".tmp-notes"
    foreign.write_text("the user's own")
    garbage = find_garbage(repository)
    assert {item.path for item in garbage} == set(left)
    assert {item.why for item in garbage} == {"left by an interrupted command"}
    assert sorted(item.bytes for item in garbage) == [4, 111, 111]
    assert collect(garbage) == 226
    assert not any(path.exists() for path in left)
    assert alive.exists()
    assert foreign.exists()


def test_vectors_that_nothing_names_go(repository: Repository) -> None:
    orphan = repository.vector_path("e" * 64)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"orphan")
    orphan.chmod(0o444)
    kept = set(stored_ids(repository)) - {"e" * 64}
    (garbage,) = find_garbage(repository)
    assert (garbage.path, garbage.why, garbage.bytes) == (orphan, "a vector without a manifest", 6)
    collect([garbage])
    assert set(stored_ids(repository)) == kept
    assert len(kept) == 2


def test_a_vector_that_only_a_version_names_stays(repository: Repository) -> None:
    add(repository, VectorLabel("listening"), 1)
    (use,) = History(repository).head().personality.uses
    (repository.root / "manifests" / f"{use.vector}.json").unlink()
    assert find_garbage(repository, forget_undo=True) != []
    assert repository.vector_path(use.vector) not in {i.path for i in find_garbage(repository, forget_undo=True)}


def test_only_the_newest_versions_build_stays(repository: Repository) -> None:
    first = add(repository, VectorLabel("listening"), 1).version
    build(repository, first)
    second = rescale(repository, "listening", 0.5).version
    build(repository, second)
    (garbage,) = find_garbage(repository)
    assert garbage.path == build_path(repository, first)
    assert garbage.bytes > 1_000_000
    collect([garbage])
    assert not build_path(repository, first).exists()
    assert not build(repository, second).new
    assert build(repository, first).new


def test_a_build_that_says_nothing_readable_is_made_again(repository: Repository) -> None:
    version = add(repository, VectorLabel("listening"), 1).version
    path = build(repository, version).path
    record = path / "persona-build.json"
    written = record.read_bytes()
    record.write_text("{")
    assert build(repository, version) == Built(path, new=True)
    assert record.read_bytes() == written
    assert build(repository, version) == Built(path, new=False)


def test_what_undo_and_redo_need_stays_until_it_is_forgotten(repository: Repository) -> None:
    vectors = set(stored_ids(repository))
    undo(repository)
    undo(repository)
    assert repository.manifests() == []
    assert find_garbage(repository) == []
    redo(repository)
    assert len(repository.manifests()) == 1
    undo(repository)
    garbage = find_garbage(repository, forget_undo=True)
    assert {item.why for item in garbage} == {
        "a vector without a manifest",
        "the magnitudes of a vector that is gone",
        "an entry of the operation log",
    }
    collect(garbage)
    assert len(vectors) == 2
    assert stored_ids(repository) == {}
    with pytest.raises(PersonaError, match="nothing to redo"):
        redo(repository)
    with pytest.raises(PersonaError, match="nothing to undo"):
        undo(repository)
    assert len(repository.operations()) == 1


def test_a_dry_run_removes_nothing(repository: Repository, persona: Persona) -> None:
    (repository.root / f"versions/.tmp-x.json-{dead_process()}-0a").write_text("half")
    undo(repository)
    before = everything(repository.root)
    code, out, _ = persona("gc", "--dry-run", "--forget-undo", "--json", cwd=repository.root)
    assert code == 0
    data = json.loads(out)["data"]
    assert data["dry_run"] is True
    assert data["freed"] == 0
    assert len(data["garbage"]) >= 4
    code, out, _ = persona("gc", "--dry-run", cwd=repository.root)
    assert code == 0
    assert "would free 4 B" in out
    assert everything(repository.root) == before


def test_nothing_goes_without_a_yes(repository: Repository, persona: Persona) -> None:
    left = repository.root / f"versions/.tmp-x.json-{dead_process()}-0a"
    left.write_text("half")
    code, _, err = persona("gc", cwd=repository.root)
    assert code == 2
    assert "`--yes`" in err
    code, out, _ = persona("gc", "--json", cwd=repository.root)
    assert (code, json.loads(out)["error"]["kind"]) == (2, "usage")
    assert left.exists()
    code, out, _ = persona("gc", "--yes", cwd=repository.root)
    assert code == 0
    assert "freed 4 B" in out
    assert not left.exists()


def test_vectors_of_another_branch_stay(repository: Repository) -> None:
    """Their manifests are not in this working copy, but git has them."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(repository.root), *identity, *arguments], check=True, capture_output=True)

    manifest = repository.manifests()[0]
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")
    git("rm", "-q", f"manifests/{manifest.id}.json")
    git("commit", "-qm", "without")
    orphan = repository.vector_path(manifest.id)
    assert orphan not in {item.path for item in find_garbage(repository, forget_undo=True)}
    shutil.rmtree(repository.root / ".git")
    assert orphan in {item.path for item in find_garbage(repository, forget_undo=True)}
