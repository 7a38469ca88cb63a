"""Statistics against known answers: what was planted is found, and where nothing was, nothing is shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from personality.evaluation.intervals import (
    clustered,
    independent_sum,
    mean,
    paired_difference,
    paired_share_difference,
    share,
)
from personality.evaluation.judgment import judgment_changes
from personality.evaluation.probe import Probe
from personality.manifests.evaluation import Figure, ProbeResult

SEEDS = 200
ALLOWED = SEEDS // 20
"""Five in a hundred."""
UNLUCKY = 16
"""What Binomial(200, 0.05) exceeds two times in a hundred."""

Generator = np.random.Generator


def _paired_rows(numbers: Generator, n: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different difficulty, answered twice; the second time with an effect."""
    rows = numbers.normal(0, 1, size=n)
    return rows + numbers.normal(0, 0.5, n), rows + effect + numbers.normal(0, 0.5, n)


def means(numbers: Generator, n: int, effect: float) -> Figure:
    before, after = _paired_rows(numbers, n, effect)
    return paired_difference(list(before), list(after))


def probabilities(numbers: Generator, n: int, effect: float) -> Figure:
    """As the openings' are: between 0 and 1, and crowded near one end."""
    before, after = _paired_rows(numbers, n, effect)
    return paired_difference(list(1 / (1 + np.exp(2 - before))), list(1 / (1 + np.exp(2 - after))))


def shares(numbers: Generator, n: int, effect: float) -> Figure:
    before, after = _paired_rows(numbers, n, effect)
    return paired_share_difference([bool(x) for x in before > -1], [bool(x) for x in after > -1])


def sampled(numbers: Generator, n: int, effect: float) -> Figure:
    """Eight replies a row, of which each has its own chance: the row is the unit."""
    before, after = (1 / (1 + np.exp(-2 * x)) for x in _paired_rows(numbers, n, effect))
    return paired_difference(list(numbers.binomial(8, before) / 8), list(numbers.binomial(8, after) / 8))


def discrimination(numbers: Generator, n: int, effect: float) -> Figure:
    probes = [Probe("x.accept", "accept", ()), Probe("x.push_back", "push_back", ())]
    results: list[list[ProbeResult]] = [[], []]
    for probe in probes:
        for found, values in zip(results, _paired_rows(numbers, n, effect), strict=True):
            outcomes = tuple(bool(x) for x in values > -1)
            found.append(ProbeResult(probe=probe.name, passed=share(outcomes), outcomes=outcomes))
    return judgment_changes(probes, *results)["x"]["discrimination"]


Kind = Callable[[Generator, int, float], Figure]
KINDS: list[Kind] = [means, probabilities, shares, sampled, discrimination]


def alarms(kind: Kind, n: int, seeds: int) -> int:
    return sum(kind(np.random.default_rng(seed), n, 0.0).shows_change for seed in range(seeds))


def test_no_effect_gives_few_false_alarms() -> None:
    """Five in a hundred together, over 200 seeds each; one kind alone may be unlucky, as Binomial(200, 0.05) is."""
    found = {kind.__name__: alarms(kind, 40, SEEDS) for kind in KINDS}
    assert sum(found.values()) <= ALLOWED * len(KINDS), found
    assert max(found.values()) <= UNLUCKY, found


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_no_effect_gives_few_false_alarms_over_many_seeds(kind: Kind, n: int) -> None:
    assert alarms(kind, n, 1500) / 1500 <= 0.05 + 2 * 0.0056


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_planted_is_found(kind: Kind) -> None:
    found = [kind(np.random.default_rng(seed), 100, 0.8) for seed in range(20)]
    assert sum(figure.shows_change and figure.low > 0 for figure in found) >= 19
    assert not any(figure.high < 0 for figure in found)


def test_small_samples_are_covered_as_well() -> None:
    """Ten values: a bootstrap that is read at 2.5% would miss in about one of ten."""
    missed = 0
    for seed in range(SEEDS):
        figure = mean(list(np.random.default_rng(seed).normal(0.3, 1, size=10)))
        missed += not figure.low <= 0.3 <= figure.high
    assert missed <= 15


def test_values_of_one_row_are_not_independent() -> None:
    """Twenty rows of thirty values that differ between rows only: as sure as of twenty values, not of six hundred."""
    numbers = np.random.default_rng(5)
    rows = [[value] * 30 for value in numbers.normal(0, 1, 20)]
    one, all_of_them = clustered(rows, np.mean), mean([value for row in rows for value in row])
    assert one.value == pytest.approx(all_of_them.value)
    assert one.n == 20
    assert one.high - one.low > 4 * (all_of_them.high - all_of_them.low)
    plain = mean([row[0] for row in rows])
    assert one.high - one.low == pytest.approx(plain.high - plain.low, rel=0.15)
    assert clustered(rows, lambda values: float(np.percentile(values, 95))).low <= np.percentile(rows, 95)


def test_independent_sums_against_the_normal_theory() -> None:
    first, second = Figure(value=1, low=0, high=2, n=3), Figure(value=2, low=1.25, high=2.75, n=4)
    both = independent_sum(first, second, -1.0)
    assert (both.value, both.low, both.high, both.n) == (2.0, 0.75, 3.25, 7)
