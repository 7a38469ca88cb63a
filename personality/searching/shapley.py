"""Shapley values: what each player of a game adds, on average over all orders in which they can join."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personality.evaluation.intervals import mean
from personality.manifests.evaluation import Figure

EXACT_PLAYERS = 4
"""Up to so many players every coalition is measured: 2⁴ = 16."""

_RESAMPLES = 2000

Rows = NDArray[np.float64]
Value = Callable[[frozenset[int]], Rows]


@dataclass(frozen=True)
class Shapley:
    """Shapley values row by row: the game of a mean over rows is the mean of the rows' games.

    Attributes:
        draws: float64 (draws, players, rows); one draw when exact, else one for each permutation with its reverse.
        exact: whether every coalition was measured.
    """

    draws: NDArray[np.float64]
    exact: bool

    def rows(self, player: int) -> Rows:
        """What a player adds to each row, mean over the draws."""
        return np.asarray(self.draws[:, player].mean(axis=0))

    def figure(self, player: int, start: int = 0, stop: int | None = None) -> Figure:
        """What a player adds to the mean of some rows, with a 95% bootstrap interval.

        Rows are resampled and, when permutations were sampled, these too, so that the interval holds both errors.
        """
        draws = self.draws[:, player, start:stop]
        if len(draws) == 1:
            return mean(list(draws[0]))
        generator = np.random.default_rng(0)
        count, rows = draws.shape
        # How often each draw and each row is in a resample; a mean of resampled draws and rows is w·D·u.
        by_draw = generator.multinomial(count, [1 / count] * count, size=_RESAMPLES) / count
        by_row = generator.multinomial(rows, [1 / rows] * rows, size=_RESAMPLES) / rows
        means = ((by_draw @ draws) * by_row).sum(axis=1)
        low, high = (float(limit) for limit in np.percentile(means, [2.5, 97.5]))
        value = float(draws.mean())
        return Figure(value=value, low=min(low, value), high=max(high, value), n=rows)

    def sampling_error(self, player: int, start: int = 0, stop: int | None = None) -> float:
        """Standard error that comes from sampling permutations alone; 0 when exact."""
        means = self.draws[:, player, start:stop].mean(axis=1)
        return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0


def shapley(players: int, value: Value, *, samples: int, seed: int = 0) -> Shapley:
    """Shapley values of a game (Shapley 1953): exact up to four players, else from sampled permutations.

    Sampling (Castro, Gómez, Tejada 2009) takes what a player adds when it joins those before it in a random order. Each
    order is used with its reverse (antithetic: Mitchell, Cooper, Frank, Holmes 2022, section 4), which lowers the
    variance. Either way the players' values add up to value(all) − value(none), row by row.

    Args:
        players: their number.
        value: of a coalition, row by row, always the same number of rows.
        samples: permutations to sample, reverses included; rounded up to an even number of at least 4.
        seed: of the permutations.
    """
    known: dict[frozenset[int], Rows] = {}

    def of(coalition: frozenset[int]) -> Rows:
        if coalition not in known:
            known[coalition] = np.asarray(value(coalition), dtype=np.float64)
        return known[coalition]

    if players <= EXACT_PLAYERS:
        return Shapley(_exact(players, of)[None], exact=True)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(max(2, math.ceil(samples / 2))):
        order = [int(player) for player in generator.permutation(players)]
        draws.append((_joining(order, of) + _joining(order[::-1], of)) / 2)
    return Shapley(np.stack(draws), exact=False)


def _exact(players: int, of: Value) -> NDArray[np.float64]:
    """φᵢ = Σ_{S ∌ i} |S|! (n − |S| − 1)! / n! · (v(S ∪ i) − v(S)), float64 (players, rows)."""
    found = np.zeros((players, len(of(frozenset()))))
    for player in range(players):
        others = [other for other in range(players) if other != player]
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for members in itertools.combinations(others, size):
                coalition = frozenset(members)
                found[player] += weight * (of(coalition | {player}) - of(coalition))
    return found


def _joining(order: list[int], of: Value) -> NDArray[np.float64]:
    """What each player adds to those before it, float64 (players, rows)."""
    found = np.zeros((len(order), len(of(frozenset()))))
    coalition: frozenset[int] = frozenset()
    for player in order:
        joined = coalition | {player}
        found[player] = of(joined) - of(coalition)
        coalition = joined
    return found
