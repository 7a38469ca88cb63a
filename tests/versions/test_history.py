"""Versions and their names; two branches that git merged."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.manifests.errors import CorruptError, NotFoundError, PersonaError, UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.versions.changes import add, remove, restore, save, tag
from personality.versions.history import History
from personality.versions.recipe import working_personality
from personality.versions.state import repository_state

Persona = Callable[..., tuple[int, str, str]]
LISTENING = VectorLabel("listening")
CONCISE = VectorLabel("concise")


def git(root: Path, *arguments: str) -> str:
    options = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "core.autocrlf=false"]
    result = subprocess.run(["git", *options, *arguments], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def commit_all(root: Path, message: str) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", message)


@pytest.fixture
def merged(repository_copy: Path) -> Repository:
    """Two branches that each added another behavior, merged by git."""
    root = repository_copy
    git(root, "init", "-q", "-b", "main")
    commit_all(root, "start")
    git(root, "checkout", "-q", "-b", "left")
    add(Repository(root), LISTENING, 0.8)
    commit_all(root, "listening")
    git(root, "checkout", "-q", "main")
    git(root, "checkout", "-q", "-b", "right")
    add(Repository(root), CONCISE, 0.5)
    commit_all(root, "concise")
    git(root, "merge", "-q", "--no-edit", "left")
    return Repository(root)


def test_git_keeps_what_is_large_or_local_out(merged: Repository) -> None:
    tracked = git(merged.root, "ls-files").splitlines()
    assert not [name for name in tracked if name.startswith(("vectors/", ".persona/"))]
    assert len([name for name in tracked if name.startswith("versions/")]) == 3
    assert git(merged.root, "status", "--porcelain") == ""


def test_a_merge_brings_both_behaviors_together(merged: Repository) -> None:
    state = repository_state(merged)
    assert str(state.working) == "concise@1 × 0.5 + listening@1 × 0.8"
    assert len(state.tips) == 2
    assert state.unsaved
    assert state.problems == []


def test_a_label_that_both_branches_used_is_refused_bare(merged: Repository) -> None:
    history = History(merged)
    twins = [version for version in history.versions.values() if version.number == 2]
    assert len(twins) == 2
    with pytest.raises(UsageError) as caught:
        history.find("v2")
    assert caught.value.message == "`v2` means " + " and ".join(f"v2 ({twin.id[:4]})" for twin in twins)
    assert caught.value.hint == f"say which: `v2:{twins[0].id[:4]}`"
    for twin in twins:
        assert history.label(twin) == f"v2:{twin.id[:4]}"
        assert history.find(f"v2:{twin.id[:4]}") is twin
        assert history.find(twin.id) is twin
    assert history.label(history.find("v1")) == "v1"


def test_changes_wait_until_the_merge_is_saved(merged: Repository) -> None:
    actions: list[Callable[[], object]] = [
        lambda: add(merged, LISTENING, 0.1),
        lambda: remove(merged, "concise"),
        lambda: History(merged).find("head"),
    ]
    for action in actions:
        with pytest.raises(PersonaError, match=r"there are several newest versions: `v2:.*`, `v2:") as caught:
            action()
        assert "persona save" in caught.value.hint
    assert len(merged.versions()) == 3


def test_saving_a_merge_has_both_as_parents(merged: Repository, persona: Persona) -> None:
    tips = sorted(tip.id for tip in History(merged).tips)
    done = save(merged, "both")
    assert done.label == "v3"
    assert list(done.version.parents) == tips
    assert str(done.version.personality) == "concise@1 × 0.5 + listening@1 × 0.8"
    state = repository_state(merged)
    assert (state.tips, state.unsaved) == (["v3"], [])
    code, out, _ = persona("log", "--json", cwd=merged.root)
    assert code == 0
    labels = [item["label"] for item in json.loads(out)["data"]["versions"]]
    assert labels[0] == "v3"
    assert sorted(labels[1:]) == ["v1", *sorted(f"v2:{tip[:4]}" for tip in tips)]
    assert not save(merged).new
    assert add(merged, LISTENING, 0.1).label == "v4"


def test_restoring_one_side_settles_the_merge_too(merged: Repository) -> None:
    side = next(tip for tip in History(merged).tips if tip.personality.use_of("concise"))
    done = restore(merged, side.id)
    assert len(done.version.parents) == 2
    assert str(working_personality(merged)) == "concise@1 × 0.5"
    assert len(History(merged).tips) == 1


def test_names_of_versions(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    first = History(repository).head()
    second = add(repository, LISTENING, 0.8).version
    tag(repository, "stable", "v1")
    history = History(repository)
    for name in ("v1", "base", "stable", first.id, first.id[:4], f"v1:{first.id[:4]}"):
        assert history.find(name).id == first.id, name
    assert history.find("head").id == second.id
    assert history.tags_of(first) == ["stable"]
    assert history.children(first.id) == [second]
    for name in ("v7", "stabel", first.id[:3], "V1", "", "0000000", "v1:0000"):
        with pytest.raises(NotFoundError, match="there is no version"):
            history.find(name)
    with pytest.raises(NotFoundError) as caught:
        history.find("stabel")
    assert caught.value.hint == "did you mean `stable`?"


def test_a_lost_parent_is_named(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    first = History(repository).head()
    add(repository, LISTENING, 0.8)
    (repository.root / "versions" / f"{first.id}.json").unlink()
    with pytest.raises(CorruptError, match=f"a version's parent {first.id} is missing"):
        History(repository)


def test_a_repository_without_versions_says_so(repository_copy: Path, persona: Persona) -> None:
    shutil.rmtree(repository_copy / "versions")
    for command in (["status"], ["diff", "base", "head"], ["add", "listening"], ["build"]):
        code, _, err = persona(*command, cwd=repository_copy)
        assert code == 1, err
        assert "Error: the repository has no version" in err
        assert "git checkout" in err
