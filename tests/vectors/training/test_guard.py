from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from personality.vectors.training.guard import Checkup, CollapseGuard, GuardLimits, Sign

STEPS = 40


@dataclass(frozen=True)
class Figures:
    """The part of a step's report that the guard reads."""

    step: int
    loss: float = 2.0
    nll: float = 2.0
    chosen_gain: float | None = None
    reward_margin: float | None = None


def guard(method: str = "dpo", **limits: float) -> CollapseGuard:
    return CollapseGuard(GuardLimits(**limits), STEPS, method)


def watch(watcher: CollapseGuard, **series: Any) -> Sign | None:
    """Feed series of equal length; returns the first sign."""
    for index, values in enumerate(zip(*series.values(), strict=True), start=1):
        sign = watcher.observe(Figures(index, **dict(zip(series, values, strict=True))))
        if sign is not None:
            return sign
    return None


def rising(to: float, steps: int = STEPS) -> list[float]:
    """A margin that levels off."""
    return [to * (1 - math.exp(-step / 12)) for step in range(steps)]


def test_a_run_that_learns_and_levels_off_raises_no_sign() -> None:
    watcher = guard()
    loss = [0.7 * math.exp(-step / 60) for step in range(STEPS)]
    assert watch(watcher, loss=loss, nll=loss, chosen_gain=rising(0.1), reward_margin=rising(1.2)) is None
    for step in (8, 16, 24, 32, 40):
        assert watcher.check(Checkup(step, kl=0.3, repetition=0.05, base_repetition=0.02)) is None
    assert [list(entry) for entry in watcher.log] == [["checkup"]] * 5


@pytest.mark.parametrize(("method", "limit", "step"), [("orpo", 0.2, 7), ("dpo", 0.4, 11)])
def test_chosen_answers_that_fall_far_fire_alone(method: str, limit: float, step: int) -> None:
    sign = watch(guard(method), chosen_gain=[-0.05 * step for step in range(STEPS)])
    assert sign is not None
    assert sign.name == "chosen-falls"
    assert sign.value > sign.limit == limit
    assert f"{sign.value:.2f} nats per token less likely" in sign.text
    assert sign.step == step  # the first at which the mean over four steps is beyond it


def test_one_bad_batch_is_not_a_sign() -> None:
    gains = [0.05] * STEPS
    gains[20] = -1.5
    assert watch(guard(), chosen_gain=gains) is None


def test_without_pairs_the_loss_of_the_answers_is_watched() -> None:
    falling = [2.0 - 0.02 * step for step in range(STEPS)]
    assert watch(guard("sft"), loss=falling, nll=falling) is None
    sign = watch(guard("sft"), nll=[2.0 + 0.1 * step for step in range(STEPS)])
    assert sign is not None
    assert sign.name == "nll-rises"
    # With pairs the same examples are compared, and the losses of different ones say less.
    assert watch(guard("orpo"), nll=[2.0 + 0.1 * step for step in range(STEPS)], chosen_gain=[0.0] * STEPS) is None


def test_becoming_sure_is_no_sign_and_neither_is_a_dip() -> None:
    watcher = guard()
    assert watch(watcher, loss=[0.7] * 4 + [0.1] * 36, reward_margin=rising(3.0), chosen_gain=[0.0] * STEPS) is None
    assert [entry["weak"]["name"] for entry in watcher.log] == ["loss-low-early"]
    assert watch(guard(), chosen_gain=[-0.2] * STEPS) is None


@pytest.mark.parametrize(
    ("sure", "name"),
    [
        ({"loss": [0.7] * 4 + [0.1] * 36}, "loss-low-early"),
        ({"reward_margin": rising(2.5)}, "margin-large"),
        ({"reward_margin": [0.0003 * min(step, 17) ** 3 for step in range(STEPS)]}, "margin-accelerates"),
    ],
)
def test_sure_and_worse_together_fire(sure: dict[str, list[float]], name: str) -> None:
    sign = watch(guard(), **sure, chosen_gain=[0.0] * 30 + [-0.2] * 10)
    assert sign is not None
    assert sign.name == f"{name} + chosen-dips"
    assert sign.step > 30
    assert "less likely" in sign.text


def test_a_checkup_brings_the_second_weak_sign() -> None:
    watcher = guard()
    assert watch(watcher, reward_margin=rising(2.5)) is None
    sign = watcher.check(Checkup(40, kl=0.1, repetition=0.2, base_repetition=0.05))
    assert sign is not None
    assert sign.name == "margin-large + stutter"


def test_a_margin_with_nothing_left_to_learn_fires_alone() -> None:
    sign = watch(guard(), reward_margin=rising(9.0))
    assert sign is not None
    assert sign.name == "margin-won"
    assert watch(guard("orpo"), reward_margin=rising(9.0)) is None


def test_a_low_loss_late_in_the_run_is_what_one_hopes_for() -> None:
    watcher = guard("sft")
    assert watch(watcher, loss=[1.0] * 20 + [0.05] * 20) is None
    assert watcher.log == []


@pytest.mark.parametrize(
    ("checkup", "name"),
    [
        (Checkup(8, kl=2.5, repetition=0.0, base_repetition=0.0), "kl"),
        (Checkup(8, kl=0.1, repetition=0.4, base_repetition=0.1), "repetition"),
        (Checkup(8, kl=math.nan, repetition=0.0, base_repetition=0.0), "not-finite"),
        (Checkup(8, kl=math.inf, repetition=0.0, base_repetition=0.0), "not-finite"),
    ],
)
def test_checkups_fire_alone(checkup: Checkup, name: str) -> None:
    watcher = guard("sft")
    sign = watcher.check(checkup)
    assert sign is not None
    assert (sign.name, sign.step) == (name, 8)
    assert watcher.log[-1]["sign"]["name"] == name


def test_a_base_that_repeats_itself_is_the_measure() -> None:
    assert guard().check(Checkup(8, kl=0.1, repetition=0.6, base_repetition=0.55)) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_fires(loss: float) -> None:
    sign = guard().observe(Figures(3, loss=loss))
    assert sign is not None
    assert sign.name == "not-finite"


def test_a_resumed_guard_goes_on_as_if_nothing_had_happened() -> None:
    gains = [-0.02 * step for step in range(STEPS)]
    margins = rising(2.5)
    whole = guard()
    expected = watch(whole, chosen_gain=gains, reward_margin=margins)
    assert expected is not None
    for cut in range(1, expected.step):
        first = guard()
        assert watch(first, chosen_gain=gains[:cut], reward_margin=margins[:cut]) is None
        second = guard()
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        sign = None
        for index in range(cut, STEPS):
            sign = second.observe(Figures(index + 1, chosen_gain=gains[index], reward_margin=margins[index]))
            if sign is not None:
                break
        assert sign == expected
        assert second.log == whole.log


def test_the_log_is_json_without_nan_whatever_was_seen() -> None:
    watcher = guard()
    watcher.check(Checkup(1, kl=math.nan, repetition=0.0, base_repetition=0.0))
    json.dumps(watcher.log, allow_nan=False)
