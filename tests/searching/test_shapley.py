"""Shapley values against games whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.searching.shapley import Rows, shapley


@pytest.mark.parametrize("players", [1, 3, 4, 6])
def test_an_additive_game_gives_everyone_what_they_bring(players: int) -> None:
    worth = np.random.default_rng(players).normal(size=(players, 5))

    def value(present: frozenset[int]) -> Rows:
        return np.asarray(0.3 + worth[sorted(present)].sum(axis=0))

    found = shapley(players, value, samples=4)
    assert found.exact == (players <= 4)
    for player in range(players):
        np.testing.assert_allclose(found.rows(player), worth[player])
        assert found.sampling_error(player) == pytest.approx(0)  # every order says the same


def test_the_glove_game() -> None:
    # One left glove (0) and two right ones: a pair is worth 1 (Shapley values 2/3, 1/6, 1/6).
    def value(present: frozenset[int]) -> Rows:
        return np.array([float(0 in present and bool(present & {1, 2}))])

    found = shapley(3, value, samples=4)
    assert [found.rows(player)[0] for player in range(3)] == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def _majority(present: frozenset[int]) -> Rows:
    """Player 0 has three of seven votes, the others one each; a majority of four wins."""
    return np.full(8, float(sum(3 if player == 0 else 1 for player in present) >= 4))


def test_sampling_comes_near_and_says_how_near() -> None:
    # Player 0 wins when one, two or three of the four others came first: 3/5; the others share the rest.
    found = shapley(5, _majority, samples=200)
    assert not found.exact
    for player, truth in enumerate([0.6, 0.1, 0.1, 0.1, 0.1]):
        error = found.sampling_error(player)
        assert 0 < error < 0.05
        assert abs(found.rows(player)[0] - truth) < 4 * error
        figure = found.figure(player)
        assert figure.low <= truth <= figure.high
        assert figure.n == 8


def test_an_interval_of_sampled_values_holds_the_truth_nineteen_times_in_twenty() -> None:
    held = 0
    for seed in range(100):
        figure = shapley(5, _majority, samples=40, seed=seed).figure(0)
        held += figure.low <= 0.6 <= figure.high
    assert held >= 88


@given(st.integers(1, 6), st.integers(0, 1000))
def test_values_add_up_and_every_coalition_is_measured_once(players: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table: dict[frozenset[int], Rows] = {}

    def value(present: frozenset[int]) -> Rows:
        assert present not in table
        table[present] = generator.normal(size=3)
        return table[present]

    found = shapley(players, value, samples=5, seed=seed)
    total = sum(found.rows(player) for player in range(players))
    np.testing.assert_allclose(total, table[frozenset(range(players))] - table[frozenset()], atol=1e-12)
    assert len(table) <= 2**players
