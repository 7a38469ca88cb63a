"""Retention, the front and the verdict, against what was planted."""

from __future__ import annotations

import numpy as np
import pytest

from personality.evaluation.goals import Goal
from personality.manifests.evaluation import Figure
from personality.manifests.personality_record import Composition
from personality.manifests.study import Trial
from personality.searching.held_out import _verdict, front_of
from personality.searching.retention import Yardstick, smallest_change
from personality.searching.tuning import _choose


def _stick(name: str, rows: int, generator: np.random.Generator) -> Yardstick:
    return Yardstick(
        Goal(name, (name,)), generator.uniform(0.0, 0.2, size=rows), generator.uniform(0.8, 1.0, size=rows)
    )


def test_retention_is_the_part_of_the_effect() -> None:
    stick = Yardstick(Goal("a", ("a",)), np.full(4, 0.2), np.full(4, 0.7))
    assert stick.retention(np.full(4, 0.45)) == pytest.approx(0.5)
    assert stick.retention(np.full(4, 0.2)) == pytest.approx(0)
    assert stick.retention(np.full(4, 0.95)) == pytest.approx(1.5)


def test_a_planted_difference_is_found_and_none_is_not() -> None:
    shown, false = 0, 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        sticks = [_stick(name, 30, generator) for name in ("a", "b")]

        def noisy(mean: float, generator: np.random.Generator = generator) -> list[np.ndarray]:
            return [np.clip(generator.normal(mean, 0.1, size=30), 0, 1) for _ in range(2)]

        better = smallest_change(sticks, noisy(0.5), noisy(0.7))
        assert better.low <= better.value <= better.high
        shown += better.low > 0
        same = smallest_change(sticks, noisy(0.6), noisy(0.6))
        false += same.low > 0 or same.high < 0
    assert shown == 60
    assert false <= 6


def _trial(number: int, values: dict[str, float], slack: float = 0.0, scale: float = 1.0) -> Trial:
    return Trial(
        number=number,
        composition=Composition(),
        scales={"a": scale},
        values=values,
        retention=values,
        slack={"general>=-2%": slack},
    )


def test_the_front_holds_what_nothing_beats() -> None:
    trials = front_of(
        [
            _trial(0, {"a": 0.5, "b": 0.5}),
            _trial(1, {"a": 0.9, "b": 0.4}),
            _trial(2, {"a": 0.6, "b": 0.6}),
            _trial(3, {"a": 1.0, "b": 1.0}, slack=-0.01),
            _trial(4, {"a": 0.6, "b": 0.5}),
        ]
    )
    assert [trial.number for trial in trials if trial.front] == [1, 2]
    assert _choose(trials).number == 2


def test_a_reserve_is_worth_more_than_a_hair() -> None:
    trials = front_of([_trial(0, {"a": 1.0, "b": 1.0}, slack=0.002), _trial(1, {"a": 0.99, "b": 0.99}, slack=0.02)])
    assert [trial.front for trial in trials] == [True, False]
    assert _choose(trials).number == 1


def test_more_than_all_counts_as_all_and_slack_decides() -> None:
    trials = front_of([_trial(0, {"a": 1.3, "b": 1.0}, slack=0.0), _trial(1, {"a": 1.0, "b": 1.2}, slack=0.02)])
    assert _choose(trials).number == 1
    trials = front_of([_trial(0, {"a": 0.99, "b": 1.0}, slack=0.0), _trial(1, {"a": 0.98, "b": 1.01}, slack=0.02)])
    assert _choose(trials).number == 1
    trials = front_of([_trial(0, {"a": 0.99, "b": 1.0}, slack=0.0), _trial(1, {"a": 0.96, "b": 1.01}, slack=0.02)])
    assert _choose(trials).number == 0
    trials = front_of([_trial(0, {"a": 1.0}, scale=1.5), _trial(1, {"a": 1.0}, scale=1.0)])
    assert _choose(trials).number == 1


def test_no_recipe_keeps_the_constraints() -> None:
    from personality.manifests.errors import PersonaError

    trials = front_of([_trial(0, {"a": 1.0}, slack=-0.05), _trial(1, {"a": 1.0}, slack=-0.03)])
    with pytest.raises(PersonaError, match=r"none of 2 recipes .*breaks general>=-2% by 3\.0 points"):
        _choose(trials)


def test_the_verdict() -> None:
    up, flat = Figure(value=0.1, low=0.02, high=0.2, n=9), Figure(value=0.1, low=-0.02, high=0.2, n=9)
    assert _verdict(False, up, [], [])[0]
    assert not _verdict(False, up, ["general>=-2%"], [])[0]
    assert _verdict(False, flat, [], []) == (False, "no difference shown on held-out rows")
    assert _verdict(False, flat, [], ["push_back>=0.9"])[0]
    assert not _verdict(True, flat, [], [])[0]
