from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.versions.changes import add
from personality.versions.history import History
from personality.versions.state import repository_state


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    repository = Repository(repository_copy)
    add(repository, VectorLabel("listening"), 0.8)
    return repository


def edit(repository: Repository, name: str, old: str, new: str) -> None:
    path = repository.root / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_clean(repository: Repository) -> None:
    state = repository_state(repository)
    assert (state.tips, state.unsaved, state.problems, state.interrupted) == (["v2"], [], [], 0)
    assert str(state.working) == "listening@1 × 0.8"


def test_hand_edits_are_shown(repository: Repository, persona: Callable[..., tuple[int, str, str]]) -> None:
    edit(repository, "behaviors/listening.toml", "scale = 0.8", "scale = 0.3")
    edit(repository, "persona.toml", 'method = "linear"', 'method = "ties"')
    (repository.root / "behaviors/concise.toml").write_text('[use]\nvector = "concise@1"\nscale = -1\nlayers = "1"\n')
    assert [str(change) for change in repository_state(repository).unsaved] == [
        "~ linear → ties (density 0.2, sum, per vector)",
        "+ concise@1 × -1, layers 1-1",
        "~ listening@1 × 0.8 → listening@1 × 0.3",
    ]
    code, out, err = persona("status", cwd=repository.root)
    assert code == 0
    assert "unsaved: + concise@1 × -1, layers 1-1" in out
    assert "`persona restore v2` drops them" in err
    code, out, _ = persona("status", "--json", cwd=repository.root)
    assert [item["what"] for item in json.loads(out)["data"]["unsaved"]] == ["composition", "concise", "listening"]


def test_missing_tensors_are_a_problem(repository: Repository) -> None:
    (use,) = repository_state(repository).working.uses
    repository.vector_path(use.vector).unlink()
    assert repository_state(repository).problems == [
        f"the tensors of listening@1 are missing ({repository.vector_path(use.vector)}): copy or remake them"
    ]


def test_leftovers_are_counted(repository: Repository) -> None:
    (repository.root / "versions/.tmp-x.json-999999999-ab").write_text("half")
    assert repository_state(repository).interrupted == 1


def test_files_that_cannot_be_read(repository: Repository) -> None:
    """What the newest version says is still shown, beside what is wrong."""
    head = History(repository).head()
    edit(repository, "behaviors/listening.toml", "listening@1", "concise@1")
    state = repository_state(repository)
    assert state.working == head.personality
    assert "listening.toml uses `concise@1`, a vector of another behavior" in state.problems[0]
    edit(repository, "behaviors/listening.toml", "concise@1", "listening@9")
    (problem,) = repository_state(repository).problems
    assert problem == "there is no vector `listening@9` (did you mean `listening@1`?)"
