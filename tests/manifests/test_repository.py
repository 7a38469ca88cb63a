from __future__ import annotations

import json
from pathlib import Path

import pytest

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import CorruptError, NotFoundError, PersonaError
from personality.manifests.personality_record import Composition
from personality.manifests.repository import Repository
from personality.versions.changes import initialize

BASE = BaseIdentity(source="base", fingerprint="b" * 64)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return initialize(tmp_path / "repo", BASE, Composition(), {})


def test_discovered_from_below_and_not_from_beside(repository: Repository) -> None:
    deep = repository.root / "behaviors/deep"
    deep.mkdir()
    assert Repository.discover(deep).root == repository.root.resolve()
    with pytest.raises(NotFoundError, match=r"no persona\.toml here or above") as caught:
        Repository.discover(repository.root.parent)
    assert "`persona init" in caught.value.hint


def test_made_once_only(repository: Repository) -> None:
    with pytest.raises(PersonaError, match="is a persona repository already"):
        initialize(repository.root, BASE, Composition(), {})
    assert ".persona/" in (repository.root / ".gitignore").read_text().splitlines()


def test_a_gitignore_of_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    initialize(tmp_path, BASE, Composition(), {})
    assert (tmp_path / ".gitignore").read_text() == "mine\n"


def test_an_interrupted_init_is_taken_up_again(repository: Repository) -> None:
    (first,) = repository.versions()
    (repository.root / "persona.toml").unlink()
    again = initialize(repository.root, BASE, Composition(), {})
    assert list(again.versions()) == [first]


def test_versions_without_their_settings_are_never_taken_for_another_base(repository: Repository) -> None:
    (repository.root / "persona.toml").unlink()
    other = BASE.model_copy(update={"fingerprint": "c" * 64})
    with pytest.raises(PersonaError, match=r"has versions of another repository"):
        initialize(repository.root, other, Composition(), {})
    assert not (repository.root / "persona.toml").exists()


def test_a_version_under_another_name_is_corrupt(repository: Repository) -> None:
    (path,) = (repository.root / "versions").glob("*.json")
    path.rename(path.with_name("0" * 64 + ".json"))
    with pytest.raises(CorruptError, match="holds the version") as caught:
        repository.versions()
    assert "0" * 64 in caught.value.message


def test_a_manifest_under_another_name_is_corrupt(playground: Path, repository: Repository) -> None:
    path = next((playground / "manifests").glob("*.json"))
    (repository.root / "manifests" / ("0" * 64 + ".json")).write_bytes(path.read_bytes())
    with pytest.raises(CorruptError, match="holds the manifest of"):
        repository.manifests()


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '"v1"', '{"tag": "x"}'])
def test_what_is_no_tag(repository: Repository, content: str) -> None:
    (repository.root / "tags").mkdir()
    (repository.root / "tags/stable.json").write_text(content)
    with pytest.raises(CorruptError, match=r"stable\.json is not a tag"):
        repository.tags()


def test_what_an_interrupted_write_left_is_passed_over(repository: Repository) -> None:
    for folder, name in (("versions", "x.json"), ("manifests", "x.json"), ("behaviors", "x.toml"), ("tags", "x.json")):
        (repository.root / folder).mkdir(exist_ok=True)
        (repository.root / folder / f".tmp-{name}").write_text("half")
        (repository.root / folder / f".tmp-{name}-1234-abcd.json").write_text("half")
    assert len(repository.versions()) == 1
    assert repository.manifests() == []
    assert repository.behaviors() == {}
    assert repository.tags() == {}


def test_text_that_is_not_utf8(repository: Repository) -> None:
    (repository.root / "behaviors/warm.toml").write_bytes(b"description = '\xff'")
    with pytest.raises(CorruptError, match=r"warm\.toml is not UTF-8"):
        repository.behaviors()
    assert repository.text("behaviors/none.toml") is None


def test_a_file_that_cannot_be_a_behavior(repository: Repository) -> None:
    (repository.root / "behaviors/My Mood.toml").write_text("")
    with pytest.raises(CorruptError, match=r"behaviors/My Mood\.toml is not named after a behavior"):
        repository.behaviors()


def test_line_ends_are_the_users(repository: Repository) -> None:
    text = 'description = "x"\r\n'
    (repository.root / "behaviors/warm.toml").write_bytes(text.encode())
    assert repository.text("behaviors/warm.toml") == text
    assert repository.behaviors()["warm"].description == "x"


def test_evaluations_are_sorted_by_time(repository: Repository) -> None:
    (version,) = repository.versions()
    assert repository.evaluations(version) == []
    data = json.loads((repository.root / "versions" / f"{version}.json").read_bytes())
    assert data["number"] == 1
