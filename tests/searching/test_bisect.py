"""Bisection of a real history of the playground, with a planted regression."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from personality.manifests.errors import NotFoundError, PersonaError, UsageError
from personality.manifests.repository import Repository
from personality.searching.bisect import Look, bisect
from personality.versions.history import History
from tests.search_repository import PLANTED


@pytest.fixture
def own(history_repository: Repository, tmp_path: Path) -> Repository:
    """A copy to write to, with all that was measured already."""
    shutil.copytree(history_repository.root, tmp_path / "play")
    return Repository(tmp_path / "play")


def test_finds_the_planted_regression(history_repository: Repository) -> None:
    looks: list[Look] = []
    found = bisect(history_repository, "push_back", "v2", "v9", first_rows=6, on_look=looks.append)
    assert found.culprit is not None
    assert found.culprit.label == PLANTED
    assert list(found.looks) == looks
    assert [look.version.label for look in looks[:2]] == ["v2", "v9"]
    assert len(looks) <= 5  # the ends, and at most three of the six between
    assert all(look.sure for look in looks)
    assert {look.rows for look in looks} == {6}
    (changes,) = found.changes.values()
    assert [str(change) for change in changes] == ["+ obeying@1 × 0.9"]


def test_near_the_threshold_more_rows_are_asked(history_repository: Repository) -> None:
    whole = bisect(history_repository, "push_back", "v2", "v9", first_rows=6)
    assert whole.looks[1].value is not None
    # A threshold within a hair of what the bad version gives cannot be told apart from it.
    threshold = whole.looks[1].value.value + 0.005
    found = bisect(history_repository, "push_back", "v2", "v9", first_rows=6, threshold=threshold)
    bad = found.looks[1]
    assert bad.rows == 12
    assert bad.verdict == "broken"
    assert not bad.sure


def test_versions_that_cannot_be_composed_are_skipped(own: Repository) -> None:
    lost = History(own).find("v4").personality.use_of("concise")
    assert lost is not None
    own.vector_path(lost.vector).unlink()  # v4 to v8 use it
    shutil.rmtree(own.local / "measured")  # else what they did is known
    found = bisect(own, "push_back", "v2", "v9", first_rows=6)
    assert found.culprit is None
    assert [version.label for version in found.candidates] == ["v9", "v4", "v5", "v6", "v7", "v8"]
    skipped = [look for look in found.looks if look.verdict == "skipped"]
    assert sorted(look.version.label for look in skipped) == ["v4", "v5", "v6", "v7", "v8"]
    assert "concise" in skipped[0].reason
    with pytest.raises(NotFoundError, match="v4 cannot be composed: "):
        bisect(own, "push_back", "v4", "v9", first_rows=6)


def test_ends_that_are_not_what_they_are_said_to_be(history_repository: Repository) -> None:
    with pytest.raises(UsageError, match="v9 was made after v2: the good version must come first"):
        bisect(history_repository, "push_back", "v9", "v2")
    with pytest.raises(UsageError, match="are the same, v2"):
        bisect(history_repository, "push_back", "v2", "v2")
    with pytest.raises(PersonaError, match="no difference shown between v7 and v8"):
        bisect(history_repository, "concise", "v7", "v8", first_rows=12)
    with pytest.raises(PersonaError, match="v1 is not the good one: `listening` is"):
        bisect(history_repository, "listening", "v1", "v9", first_rows=6)
    with pytest.raises(PersonaError, match=r"v9 is not broken: `push_back` is .*above the threshold of 0%"):
        bisect(history_repository, "push_back", "v2", "v9", first_rows=6, threshold=0.0001)
    with pytest.raises(UsageError, match="nothing to measure called `push_bakc`"):
        bisect(history_repository, "push_bakc", "v2", "v9")
    with pytest.raises(UsageError, match="a share between 0 and 1, not 80"):
        bisect(history_repository, "push_back", "v2", "v9", threshold=80)


def test_versions_on_two_branches(own: Repository) -> None:
    history = History(own)
    side = history.next(history.find("v2").personality, "on a branch", [history.find("v1")])
    (own.root / f"versions/{side.id}.json").write_bytes(side.to_bytes())
    with pytest.raises(UsageError, match=r"no path leads from the one to the other"):
        bisect(own, "push_back", f"v2:{side.id[:6]}", "v9")
