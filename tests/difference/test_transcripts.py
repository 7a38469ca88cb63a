from __future__ import annotations

import pytest

from personality.difference.transcripts import changed_most
from personality.evaluation.suite import Probe, Row, Turn
from personality.manifests.errors import DataError
from personality.manifests.evaluation import ProbeResult
from personality.manifests.personality_record import Personality
from tests.difference.made import BASE, evaluation, result, use

OLD, NEW = Personality(base=BASE), Personality(base=BASE, uses=(use("calm"),))


def probe(name: str, rows: int, answers: tuple[int, ...] = ()) -> Probe:
    turn = (Turn(role="user", content="?"),)
    return Probe(
        name,
        None,
        tuple(
            Row(prompt=turn, passes="x", chosen=turn, rejected=turn)
            if index in answers
            else Row(prompt=turn, passes="x")
            for index in range(rows)
        ),
    )


def chosen(
    probes: list[Probe], before: list[ProbeResult], after: list[ProbeResult], count: int = 10
) -> list[tuple[str, int]]:
    found = changed_most(probes, evaluation(before, OLD), evaluation(after, NEW), count)
    return [(row.probe.name, row.index) for row in found]


def test_flips_and_probabilities_rank_together() -> None:
    before = [result("a", [True, True, True]), result("b", [False] * 3, [0.1, 0.1, 0.1])]
    after = [result("a", [True, False, True]), result("b", [False] * 3, [0.1, 0.9, 0.3])]
    assert chosen([probe("a", 3), probe("b", 3)], before, after) == [("a", 1), ("b", 1), ("b", 2)]


def test_rows_that_did_not_move_are_left_out() -> None:
    same = [result("a", [True, False], [0.5, 0.5])]
    moved = [result("a", [True, False], [0.5, 0.504])]
    assert chosen([probe("a", 2)], same, same) == []
    assert chosen([probe("a", 2)], same, moved) == []


def test_one_probe_leaves_room_for_others() -> None:
    before = [result("a", [False] * 5), result("b", [False], [0.1])]
    after = [result("a", [True] * 5), result("b", [False], [0.5])]
    assert chosen([probe("a", 5), probe("b", 1)], before, after, 3) == [("a", 0), ("a", 1), ("b", 0)]


def test_margins_break_ties_and_belong_to_the_rows_with_both_answers() -> None:
    before = [result("a", [False] * 3, margins=[0.0, 0.0])]
    after = [result("a", [True] * 3, margins=[0.2, -0.7])]
    assert chosen([probe("a", 3, answers=(0, 2))], before, after) == [("a", 2), ("a", 0), ("a", 1)]


def test_sampled_shares_and_grades_count() -> None:
    before = [result("a", [True, True]).model_copy(update={"shares": (1.0, 1.0), "grades": (0.9, 0.2)})]
    after = [result("a", [True, True]).model_copy(update={"shares": (0.8, 1.0), "grades": (0.9, 0.9)})]
    assert chosen([probe("a", 2)], before, after) == [("a", 1), ("a", 0)]


def test_an_evaluation_of_other_rows_is_refused() -> None:
    with pytest.raises(DataError, match="do not hold every row of the probe `a`"):
        chosen([probe("a", 3)], [result("a", [True])], [result("a", [True])])
