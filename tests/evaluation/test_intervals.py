from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.evaluation.intervals import mean, paired_difference, paired_share_difference, share


# Wilson's score interval without continuity correction, z = 1.96; the first three from Newcombe 1998
# (Statistics in Medicine 17:857, table I, method 3), the rest computed from the formula by hand.
@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_against_known_values(passed: int, n: int, low: float, high: float) -> None:
    figure = share([True] * passed + [False] * (n - passed))
    assert figure.value == passed / n
    assert figure.n == n
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=5e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_a_share_lies_in_its_interval_and_in_the_unit(outcomes: list[bool]) -> None:
    figure = share(outcomes)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    assert figure.high > figure.low
    flipped = share([not outcome for outcome in outcomes])
    assert (1 - flipped.high, 1 - flipped.low) == pytest.approx((figure.low, figure.high))


def test_the_bootstrap_covers_what_was_planted() -> None:
    """The 95% interval holds the true mean in about 95 of 100 samples."""
    numbers = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        figure = mean(list(numbers.normal(0.3, 1.0, size=60)))
        covered += figure.low <= 0.3 <= figure.high
    assert 0.90 <= covered / 300 <= 0.985


def test_the_bootstrap_is_the_same_every_time_and_about_as_wide_as_theory_says() -> None:
    values = list(np.random.default_rng(2).normal(0, 2, size=400))
    figure = mean(values)
    assert figure == mean(values)
    assert figure.value == pytest.approx(np.mean(values))
    width = 2 * 1.96 * np.std(values) / np.sqrt(400)
    assert figure.high - figure.low == pytest.approx(width, rel=0.1)
    assert mean([0.25] * 5).low == mean([0.25] * 5).high == 0.25


def test_no_effect_is_rarely_shown() -> None:
    numbers = np.random.default_rng(3)
    means = shares = 0
    for _ in range(200):
        rows = numbers.normal(0, 1, size=100)  # easy and hard rows
        before, after = rows + numbers.normal(0, 0.3, 100), rows + numbers.normal(0, 0.3, 100)
        figure = paired_difference(list(before), list(after))
        means += figure.low <= 0 <= figure.high
        change = paired_share_difference([bool(x) for x in before > 0], [bool(x) for x in after > 0])
        shares += change.low <= 0 <= change.high
    assert means >= 0.93 * 200 - 4
    assert shares >= 0.93 * 200


def test_pairing_shows_what_unpaired_shares_would_hide() -> None:
    before = [True] * 50 + [False] * 50
    after = [True] * 60 + [False] * 40
    change = paired_share_difference(before, after)
    assert change.value == pytest.approx(0.1)
    assert change.low > 0
    assert share(before).high > share(after).low  # the two intervals alone overlap


# By the formula of Newcombe 1998 (Statistics in Medicine 17:2635), method 10;
# cells: both, only after, only before, none.
@pytest.mark.parametrize(
    ("cells", "difference", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),  # φ = -0.10, kept
        ((0, 10, 0, 0), 1.0, 0.6075, 1.0),  # two constants, φ = 0
        ((20, 0, 0, 20), 0.0, -0.0468, 0.0468),  # φ = 1, lowered to 0.95
    ],
)
def test_paired_shares_against_known_values(
    cells: tuple[int, int, int, int], difference: float, low: float, high: float
) -> None:
    both, first, second, none = cells
    after = [True] * (both + first) + [False] * (second + none)
    before = [True] * both + [False] * first + [True] * second + [False] * none
    figure = paired_share_difference(before, after)
    assert figure.value == pytest.approx(difference)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=2e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=100))
def test_paired_shares_turn_round(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = paired_share_difference(before, after), paired_share_difference(after, before)
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert one.high > one.low
    assert (one.low, one.value, one.high) == pytest.approx((-other.high, -other.value, -other.low))


def test_pairs_need_the_same_rows() -> None:
    with pytest.raises(ValueError, match="the same rows, got 1 and 2"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="the same rows, got 1 and 2"):
        paired_share_difference([True], [True, False])
