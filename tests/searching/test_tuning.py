"""Tuning a recipe of the playground in memory."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from typing import Any

import pytest

from personality.manifests.errors import DataError, PersonaError, UsageError
from personality.manifests.repository import Repository
from personality.manifests.study import Study, Trial
from personality.searching.constraint import parse_constraints
from personality.searching.tuning import take, tune
from personality.versions.history import History
from personality.versions.undoing import undo

ROWS = 8


@pytest.fixture
def own(history_repository: Repository, tmp_path: Path) -> Repository:
    shutil.copytree(history_repository.root, tmp_path / "play")
    return Repository(tmp_path / "play")


def test_finds_a_recipe_without_the_planted_vector_and_records_it(own: Repository) -> None:
    """At the head `obeying` has destroyed pushing back; a recipe must give it little or nothing."""
    head = History(own).head()
    constraints = parse_constraints(["push_back>=0.7"])
    seen: list[int] = []
    tuned = tune(
        own,
        head,
        ["listening"],
        constraints,
        trials=10,
        rows=ROWS,
        on_trial=lambda n, trial: seen.append(n) if trial else None,
    )
    assert seen == sorted(seen)
    assert {trial.number for trial in tuned.trials} <= {0, *seen}
    recipes = [(str(trial.composition), tuple(trial.scales.values())) for trial in tuned.trials]
    assert len(set(recipes)) == len(recipes)
    was = tuned.trials[0]
    assert not was.feasible
    assert not was.front
    assert tuned.chosen.feasible
    assert any(trial.front for trial in tuned.trials)
    assert set(tuned.chosen.scales) == {"listening", "obeying"}
    assert {trial.composition.method for trial in tuned.trials} == {"linear", "ties"}
    assert tuned.held_out.slack_before["push_back>=0.7"] < 0
    assert tuned.held_out.slack_after.keys() == {"push_back>=0.7"}
    # The same command again measures nothing and finds the same; a longer one goes on from there.
    models: list[int] = []
    again = tune(own, head, ["listening"], constraints, trials=10, rows=ROWS, on_probe=lambda *_: models.append(1))
    assert again.trials == tuned.trials
    assert models == []
    recorded = take(own, tuned, "pushes back again")
    assert recorded.version.personality == tuned.personality
    study = Study.read(own.root / f"studies/{recorded.version.id}.json")
    assert study.version == recorded.version.id
    assert study.tuned == head.id
    assert study.trials == tuned.trials
    assert study.held_out == tuned.held_out
    assert own.operations()[-1].command == "tune listening subject to push_back>=0.7"
    undo(own)
    assert not (own.root / f"studies/{recorded.version.id}.json").exists()
    assert History(own).head().id == head.id


def test_what_cannot_be_tuned(own: Repository) -> None:
    history = History(own)
    with pytest.raises(DataError, match="v1 uses no vector"):
        tune(own, history.find("v1"), ["listening"])
    with pytest.raises(UsageError, match="nothing to maximize"):
        tune(own, history.head(), [])
    with pytest.raises(UsageError, match="nothing to measure called `lisening`"):
        tune(own, history.head(), ["lisening"])
    with pytest.raises(DataError, match="has 1 row: one half is for the search"):
        tune(own, history.head(), ["listening"], rows=1)
    with pytest.raises(PersonaError, match="none of 2 recipes keeps all constraints"):
        tune(own, history.head(), ["listening"], parse_constraints(["concise>=1"]), trials=1, rows=2)


def test_without_optuna(own: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(PersonaError, match="Optuna, which searches, is not installed") as caught:
        tune(own, History(own).head(), ["listening"])
    assert caught.value.hint == "install it: `pip install 'personality[search]'`"


def test_a_trial_knows_what_it_keeps() -> None:
    given: dict[str, Any] = {"number": 1, "composition": {}, "scales": {}, "values": {}}
    trial = Trial(**given, retention={"a": 0.9, "b": 0.4}, slack={"x": 0.0, "y": -0.1})
    assert trial.smallest == 0.4
    assert not trial.feasible
