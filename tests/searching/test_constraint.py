"""Constraints as typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.evaluation.goals import Goal
from personality.evaluation.intervals import share
from personality.manifests.errors import UsageError
from personality.manifests.evaluation import ProbeResult
from personality.searching.constraint import Constraint, parse_constraints


def _result(*outcomes: bool) -> list[ProbeResult]:
    return [ProbeResult(probe="general.facts", passed=share(outcomes), outcomes=outcomes)]


def test_both_forms_in_one_text_and_in_several() -> None:
    expected = [Constraint("general", True, -0.02, True), Constraint("push_back", True, 0.9, False)]
    assert parse_constraints(["general>=-2%,push_back>=0.9"]) == expected
    assert parse_constraints([" general >= -2% ", "push_back>=.9"]) == expected
    assert parse_constraints(["warm.warm<=10%"]) == [Constraint("warm.warm", False, 0.1, True)]
    assert parse_constraints([]) == []


@given(st.sampled_from([">=", "<="]), st.integers(-100, 100))
def test_what_is_written_is_read_again(sign: str, points: int) -> None:
    (found,) = parse_constraints([f"general{sign}{points}%"])
    assert parse_constraints([str(found)]) == [found]
    assert found.limit == pytest.approx(points / 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("general", "`general` is not a constraint"),
        ("general>-2%", "`general>-2%` is not a constraint"),
        ("general>=", "is not a constraint"),
        ("general>=2%,", "`` is not a constraint"),
        ("general>=nan", "is not a constraint"),
        ("general>=-2", "`general>=-2`: a share lies between 0 and 1"),
        ("push_back>=90", "a share lies between 0 and 1"),
        ("general>=-200%", "a difference lies between"),
        ("general>=-2%,general>=-3%", "two constraints limit `general` on the same side"),
    ],
)
def test_what_is_no_constraint(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_constraints([text])
    assert message in caught.value.message


def test_slack_against_the_base_and_absolute() -> None:
    goal = Goal("general", ("general.facts",))
    base, after = _result(True, True, True, True, True), _result(True, True, True, True, False)
    (points,) = parse_constraints(["general>=-20%"])
    assert points.slack(goal, base, after) == 0  # kept exactly, whatever floats make of 0.8 − 1 + 0.2
    (share_,) = parse_constraints(["general>=0.9"])
    assert share_.slack(goal, base, after) == pytest.approx(-0.1)
    (most,) = parse_constraints(["general<=0.9"])
    assert most.slack(goal, base, after) == pytest.approx(0.1)
