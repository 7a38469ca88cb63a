from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from personality.manifests import transaction
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import CorruptError, PersonaError
from personality.manifests.repository import Repository
from personality.manifests.transaction import commit, inverse, replay, settle, stacks

PATHS = ["persona.toml", "behaviors/a.toml", "behaviors/b.toml", "tags/t.json", "versions/1.json", "manifests/m.json"]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def contents(repository: Repository) -> dict[str, str]:
    return {path: text for path in PATHS if (text := repository.text(path)) is not None}


def test_what_is_referred_to_is_written_first(repository: Repository) -> None:
    done = commit(repository, "all", dict.fromkeys(PATHS, "x"))
    assert done is not None
    assert [change.path.split("/")[0] for change in done.changes] == [
        "manifests",
        "versions",
        "tags",
        "behaviors",
        "behaviors",
        "persona.toml",
    ]
    assert [change.path for change in inverse(done)] == [change.path for change in reversed(done.changes)]


def test_nothing_to_change_is_not_logged(repository: Repository) -> None:
    commit(repository, "one", {"behaviors/a.toml": "x"})
    assert commit(repository, "two", {"behaviors/a.toml": "x", "behaviors/b.toml": None}) is None
    assert [operation.command for operation in repository.operations()] == ["one"]


def test_an_edit_since_then_is_not_lost(repository: Repository) -> None:
    commit(repository, "one", {"behaviors/a.toml": "x", "behaviors/b.toml": "x"})
    commit(repository, "two", {"behaviors/a.toml": "y", "behaviors/b.toml": "y"})
    (repository.root / "behaviors/a.toml").write_text("by hand")
    with pytest.raises(PersonaError, match=r"behaviors/a\.toml was changed since `two`; to undo") as caught:
        replay(repository, stacks(repository.operations())[0][-1], "undo")
    assert "take the edit out of behaviors/a.toml" in caught.value.hint
    assert contents(repository) == {"behaviors/a.toml": "by hand", "behaviors/b.toml": "y"}
    assert len(repository.operations()) == 2


def test_an_undo_that_was_cut_short_can_be_finished(repository: Repository) -> None:
    commit(repository, "one", {"behaviors/a.toml": "x", "behaviors/b.toml": "x"})
    (repository.root / "behaviors/b.toml").unlink()  # as far as the interrupted undo came
    replay(repository, stacks(repository.operations())[0][-1], "undo")
    assert contents(repository) == {}


class UndoAndRedo(RuleBasedStateMachine):
    """Random changes, undo and redo against two plain stacks of dictionaries."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.repository = Repository(Path(self.folder))
        self.now: dict[str, str] = {}
        self.before: list[dict[str, str]] = []
        self.after: list[dict[str, str]] = []

    @rule(changes=st.dictionaries(st.sampled_from(PATHS), st.none() | st.sampled_from("xyz"), min_size=1, max_size=4))
    def change(self, changes: dict[str, str | None]) -> None:
        new = copy.copy(self.now)
        for path, text in changes.items():
            if text is None:
                new.pop(path, None)
            else:
                new[path] = text
        done = commit(self.repository, "change", dict(changes))
        assert (done is None) == (new == self.now)
        if done is not None:
            self.before.append(self.now)
            self.after.clear()
            self.now = new

    @precondition(lambda self: self.before)
    @rule()
    def undo(self) -> None:
        entry = replay(self.repository, stacks(self.repository.operations())[0][-1], "undo")
        assert entry.direction == "undo"
        self.after.append(self.now)
        self.now = self.before.pop()

    @precondition(lambda self: self.after)
    @rule()
    def redo(self) -> None:
        replay(self.repository, stacks(self.repository.operations())[1][-1], "redo")
        self.before.append(self.now)
        self.now = self.after.pop()

    @invariant()
    def files_are_as_the_model_says(self) -> None:
        assert contents(self.repository) == self.now
        done, undone = stacks(self.repository.operations())
        assert (len(done), len(undone)) == (len(self.before), len(self.after))
        numbers = [operation.number for operation in self.repository.operations()]
        assert numbers == list(range(1, len(numbers) + 1))

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestUndoAndRedo = UndoAndRedo.TestCase
TestUndoAndRedo.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_change_that_was_cut_short_can_be_undone(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unsaved edit that a killed command had overwritten comes back."""
    commit(repository, "one", {"behaviors/a.toml": "x", "persona.toml": "x"})
    (repository.root / "behaviors/a.toml").write_text("by hand")

    def killed(path: Path, data: bytes) -> None:
        if path.name == "persona.toml":
            raise KeyboardInterrupt
        write_bytes(path, data)

    monkeypatch.setattr(transaction, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        commit(repository, "two", {"behaviors/a.toml": "y", "persona.toml": "y"})
    monkeypatch.undo()
    assert contents(repository)["behaviors/a.toml"] == "y"
    settle(repository)
    replay(repository, stacks(repository.operations())[0][-1], "undo")
    assert contents(repository)["behaviors/a.toml"] == "by hand"


def test_a_log_cannot_reach_outside(repository: Repository) -> None:
    commit(repository, "one", {"behaviors/a.toml": "x"})
    path = repository.local / "ops/00000001.json"
    path.write_text(path.read_text().replace("behaviors/a.toml", "../outside.toml"))
    with pytest.raises(CorruptError, match="leads out of"):
        replay(repository, stacks(repository.operations())[0][-1], "redo")
    assert not (repository.root.parent / "outside.toml").exists()
