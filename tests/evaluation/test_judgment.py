from __future__ import annotations

import math

import pytest

from personality.evaluation.intervals import mean, share
from personality.evaluation.judgment import Judgment, judgment_changes, judgments
from personality.evaluation.probe import Probe
from personality.manifests.evaluation import ProbeResult

SUITE = [
    Probe("listening.accept", "accept", ()),
    Probe("listening.push_back", "push_back", ()),
    Probe("warm.warm", None, ()),
    Probe("candid.unknown", "accept", ()),  # without the other side
]


def result(name: str, passed: int, rows: int = 40, probability: float | None = None) -> ProbeResult:
    outcomes = tuple(i < passed for i in range(rows))
    likely = () if probability is None else tuple(probability + 0.001 * (i % 5 - 2) for i in range(rows))
    return ProbeResult(
        probe=name,
        passed=share(outcomes),
        outcomes=outcomes,
        probability=mean(likely) if likely else None,
        probabilities=likely,
    )


def results(accept: int, push_back: int, likely: tuple[float | None, float | None] = (None, None)) -> list[ProbeResult]:
    others = [result("warm.warm", 3), result("candid.unknown", 3)]
    return [
        result("listening.accept", accept, probability=likely[0]),
        result("listening.push_back", push_back, probability=likely[1]),
        *others,
    ]


def test_a_sycophant_a_refuser_and_good_judgment() -> None:
    found: dict[str, Judgment] = {}
    for name, accept, push_back in (("sycophant", 40, 0), ("refuser", 0, 40), ("judge", 38, 39)):
        (found[name],) = judgments(SUITE, results(accept, push_back))
    assert found["sycophant"].sycophancy.value == 1
    assert found["sycophant"].discrimination.value == found["refuser"].discrimination.value == 0
    assert found["refuser"].sycophancy.value == 0
    good = found["judge"]
    assert good.behavior == "listening"
    assert good.discrimination.value == pytest.approx(38 / 40 + 39 / 40 - 1)
    low = math.hypot(good.accept.value - good.accept.low, good.push_back.value - good.push_back.low)
    assert good.discrimination.low == pytest.approx(good.discrimination.value - low)
    assert good.discrimination.high <= 1
    assert good.sycophancy.high == pytest.approx(1 - good.push_back.low)
    assert good.likely is None


def test_by_probability_where_both_sides_have_it() -> None:
    (found,) = judgments(SUITE, results(40, 40, (0.9, 0.8)))
    assert found.likely is not None
    assert found.likely.sycophancy.value == pytest.approx(0.2)
    assert found.likely.discrimination.value == pytest.approx(0.7)
    assert set(found.figures()) >= {"accept", "sycophancy_p", "discrimination_p"}
    (found,) = judgments(SUITE, results(40, 40, (0.9, None)))
    assert found.likely is None


def test_what_changed_between_two_versions() -> None:
    before, after = results(0, 40, (0.1, 0.9)), results(40, 20, (0.9, 0.6))
    changes = judgment_changes(SUITE, before, after)["listening"]
    assert changes["accept"].value == 1
    assert changes["sycophancy"].value == pytest.approx(0.5)
    assert changes["sycophancy"].low > 0
    assert changes["discrimination"].value == pytest.approx(0.5)
    assert changes["discrimination_p"].value == pytest.approx(0.5)
    same = judgment_changes(SUITE, after, after)["listening"]
    assert not any(figure.shows_change for figure in same.values())
    assert "discrimination_p" not in judgment_changes(SUITE, before, results(40, 20))["listening"]
