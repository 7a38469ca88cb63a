"""Verdicts: what counts as too small, right, too large and forgetting, judged with intervals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.evaluation.intervals import mean, share
from personality.evaluation.suite import Probe
from personality.making.dose import Dose, dose_of, highest_rate
from personality.making.health import Health
from personality.making.verdict import Judgment, compare, judge
from personality.manifests.evaluation import ProbeResult
from personality.vectors.training.guard import Sign
from personality.vectors.training.settings import make_settings

ROWS = 40
DOSE = Dose(
    examples=20,
    sides={"accept": 14, "push_back": 6, "unlabeled": 0},
    rate=1e-3,
    highest_rate=4e-3,
    general_ratio=0.25,
    sign=None,
)
PROBES = (
    Probe("listening.accept", "accept", ()),
    Probe("listening.push_back", "push_back", ()),
    Probe("general.sums", None, ()),
    Probe("general.facts", None, ()),
)


def result(name: str, passed: float, probability: float | None = None, rows: int = ROWS) -> ProbeResult:
    """A probe's result: the first rows pass; probabilities spread a little around their mean."""
    outcomes = tuple(row < round(passed * rows) for row in range(rows))
    spread = [0.02 * ((row % 5) - 2) for row in range(rows)]
    values = tuple(min(1.0, max(0.0, probability + item)) for item in spread) if probability is not None else ()
    return ProbeResult(
        probe=name,
        passed=share(outcomes),
        probability=mean(values) if values else None,
        outcomes=outcomes,
        probabilities=values,
    )


def health(nll: float) -> Health:
    """Held-out text with a little spread."""
    per_example = tuple(nll + 0.01 * ((row % 7) - 3) for row in range(28))
    return Health(mean(per_example), per_example, None)


BEFORE = (
    result("listening.accept", 0.0, 0.07),
    result("listening.push_back", 1.0, 0.97),
    result("general.sums", 1.0),
    result("general.facts", 1.0),
)


def verdict(
    accept: float = 0.9,
    push_back: float = 0.96,
    replies_push_back: float = 1.0,
    sums: float = 1.0,
    facts: float = 1.0,
    nll: float = 0.1,
    dose: Dose = DOSE,
) -> Judgment:
    """Judge a run that left these figures."""
    after = (
        result("listening.accept", float(accept > 0.5), accept),
        result("listening.push_back", replies_push_back, push_back),
        result("general.sums", sums),
        result("general.facts", facts),
    )
    return judge(compare("listening", PROBES, BEFORE, after, health(0.1), health(nll)), dose)


def test_right() -> None:
    found = verdict()
    assert found.verdict == "right"
    assert "listening.accept: wanted opening 7% → 90%" in found.advice[0]


def test_too_small_says_what_to_turn_up() -> None:
    found = verdict(accept=0.55)  # every greedy reply accepts already; the probability says how firmly
    assert found.verdict == "too small"
    assert "--examples 40" in found.advice[-1]
    assert "up to 0.004" in found.advice[-1]
    assert "as high as it should be" in verdict(accept=0.55, dose=replace(DOSE, rate=4e-3)).advice[-1]


def test_lost_push_back_is_too_large_however_strong_the_effect() -> None:
    assert verdict(push_back=0.90).verdict == "right"  # shown, but no more than a tenth
    for found in (verdict(push_back=0.8), verdict(replies_push_back=0.8)):
        assert found.verdict == "too large"
        assert "listening.push_back" in found.advice[0]
        assert "--lr 0.0005" in found.advice[-1]
        assert "sycophancy" in found.advice[-1]


def test_one_sided_data_is_named_as_the_cause() -> None:
    one_sided = replace(DOSE, sides={"accept": 20, "push_back": 0, "unlabeled": 0})
    found = verdict(push_back=0.3, dose=one_sided)
    assert found.verdict == "too large"
    assert "the data has no examples of the other side (`side: push_back`)" in found.advice[-1]
    assert "--lr" not in found.advice[-1]
    unlabeled = replace(DOSE, sides={"accept": 0, "push_back": 0, "unlabeled": 20})
    assert "if the data has no" in verdict(push_back=0.3, dose=unlabeled).advice[-1]


def test_forgetting_names_the_ability() -> None:
    found = verdict(facts=0.7)
    assert found.verdict == "forgetting"
    assert found.advice[0].startswith("general.facts: replies pass 100% → 70%")
    assert "--general-ratio 0.4" in found.advice[-1]
    assert "add examples of general.facts" in found.advice[-1]
    already = verdict(facts=0.7, dose=replace(DOSE, general_ratio=0.4))
    assert "at 40% already" in already.advice[-1]
    assert "--lr 0.0005" in already.advice[-1]


def test_one_row_of_forty_is_no_forgetting() -> None:
    assert verdict(sums=39 / 40).verdict == "right"


def test_small_losses_everywhere_add_up() -> None:
    assert verdict(sums=0.925).verdict == "right"
    assert verdict(sums=0.925, facts=0.925).verdict == "forgetting"


def test_forgetting_by_held_out_text() -> None:
    assert verdict(nll=0.12).verdict == "right"
    found = verdict(nll=0.18)
    assert found.verdict == "forgetting"
    assert "held-out general text: +0.080 nats per token" in found.advice[0]
    assert verdict(nll=0.02).verdict == "right"  # a behavior that general data shows too


def test_what_was_lost_counts_before_what_was_gained() -> None:
    assert verdict(accept=0.2, facts=0.5).verdict == "forgetting"
    both = verdict(push_back=0.2, facts=0.5)
    assert both.verdict == "too large"
    assert any("general.facts" in sentence for sentence in both.advice)


def test_a_sign_of_collapse_is_too_large() -> None:
    sign = Sign("kl", 7, 3.1, 2.0, "the model has moved 3.10 nats per token from the base (limit 2)")
    found = verdict(dose=replace(DOSE, sign=sign))
    assert found.verdict == "too large"
    assert sign.text in found.advice[0]
    assert judge(None, replace(DOSE, sign=sign)).verdict == "too large"


def test_no_probes_of_the_behavior_give_no_verdict() -> None:
    found = judge(compare("warm", PROBES[2:], BEFORE[2:], BEFORE[2:], None, None), DOSE)
    assert found.verdict == "unknown"
    assert "[[probes]]" in found.advice[0]
    assert judge(compare("warm", (), (), (), health(0.1), health(0.3)), DOSE).verdict == "forgetting"


def test_what_the_base_does_already_can_only_be_lost() -> None:
    probes = (Probe("candid.unknown", None, ()), Probe("candid.known", None, ()))
    before = (result("candid.unknown", 0.0, 0.05), result("candid.known", 1.0, 0.98))
    good = (result("candid.unknown", 1.0, 0.95), result("candid.known", 1.0, 0.96))
    bad = (result("candid.unknown", 1.0, 0.98), result("candid.known", 0.0, 0.1))
    assert judge(compare("candid", probes, before, good, None, None), DOSE).verdict == "right"
    found = judge(compare("candid", probes, before, bad, None, None), DOSE)
    assert found.verdict == "too large"
    assert "candid.known" in found.advice[0]
    only = judge(compare("candid", probes[1:], before[1:], before[1:], None, None), DOSE)
    assert only.verdict == "unknown"
    assert "the base does already" in only.advice[0]


@pytest.mark.parametrize("rows", [10, 12, 40])
def test_without_openings_greedy_replies_decide(rows: int) -> None:
    probes = (Probe("concise.concise", None, ()),)
    before = (result("concise.concise", 0.0, rows=rows),)
    for passed, wanted in ((1.0, "right"), (0.5, "too small")):
        after = (result("concise.concise", passed, rows=rows),)
        assert judge(compare("concise", probes, before, after, None, None), DOSE).verdict == wanted


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_stronger_effect_is_never_smaller(first: float, second: float) -> None:
    order = ["too small", "right"]
    low, high = sorted((first, second))
    assert order.index(verdict(accept=low).verdict) <= order.index(verdict(accept=high).verdict)


def test_highest_rates() -> None:
    assert highest_rate("sft", 7_000_000_000) == pytest.approx(1e-4)
    assert highest_rate("orpo", 7_000_000_000) == pytest.approx(1e-4)
    assert highest_rate("dpo", 7_000_000_000) == pytest.approx(5e-6)
    assert highest_rate("orpo", 500_000) == pytest.approx(4e-3)
    between = highest_rate("orpo", 100_000_000)
    assert 1e-4 < between < 4e-3


def test_dose_of_a_run() -> None:
    sides = {"accept": 3, "push_back": 1, "unlabeled": 0}
    found = dose_of(make_settings(method="dpo", lr=1e-6), sides, None, 2_000_000_000)
    assert (found.examples, found.rate, found.general_ratio) == (4, 1e-6, 0.25)
    assert dose_of(make_settings(), sides, None, 500_000).rate == 2e-3
