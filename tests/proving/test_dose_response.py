from __future__ import annotations

import pytest

from personality.manifests.steering_record import DosePoint
from personality.proving.dose_response import coherent_to, finite_exp, general_share


def point(scale: float, *, coherent: bool) -> DosePoint:
    return DosePoint(scale=scale, kl_95=1.0, perplexity=2.0, repetition=0.0, coherent=coherent)


def test_text_holds_up_to_the_first_break() -> None:
    points = [point(2.0, coherent=True), point(0.5, coherent=True), point(1.0, coherent=False)]
    assert coherent_to(points) == 0.5
    assert coherent_to(points[:2]) == 2.0
    assert coherent_to([points[2]]) is None
    assert coherent_to([]) is None


def test_a_perplexity_that_is_no_number_is_none() -> None:
    assert finite_exp(1.0) == pytest.approx(2.718281828)
    assert finite_exp(float("nan")) is None
    assert finite_exp(float("inf")) is None
    assert finite_exp(1000.0) is None


def test_general_probes_are_pooled_over_their_rows() -> None:
    passing = {"general.sums": [True, False, True], "general.facts": [True], "kind.says": [False] * 9}
    assert general_share(passing) == 0.75
    assert general_share({"kind.says": [True]}) is None
