from __future__ import annotations

import numpy as np
import pytest

from personality.preflight.measures import Dialogue, Measures
from personality.vectors.training.examples import Example
from personality.vectors.training.tokens import Encoded


def make_measures(
    chosen: list[list[float]],
    rejected: list[list[float] | None],
    own: list[list[float]],
    answers: list[list[int]] | None = None,
    sides: str = "",
) -> Measures:
    dialogues = []
    for row, scores in enumerate(chosen):
        ids = (1, 2, *(answers[row] if answers else range(10, 10 + len(scores))))
        side = {"a": "accept", "p": "push_back"}.get(sides[row : row + 1])
        example = Example("q", " a", " b", side=side)  # type: ignore[arg-type]
        dialogues.append(Dialogue(example, Encoded(ids, 2, len(ids)), None))
    arrays = [None if scores is None else np.array(scores) for scores in rejected]
    return Measures(
        tuple(dialogues),
        tuple(map(np.array, chosen)),
        tuple(arrays),
        tuple(map(np.array, own)),
        tuple(range(len(own))),
    )


def test_means_are_per_token_and_per_side() -> None:
    found = make_measures([[-1.0, -3.0], [-1.0]], [[-1.0], [-2.0, -4.0]], [[-0.5], [-0.5]], sides="ap")
    assert found.margins() == [-1.0, 2.0]
    assert found.margins("accept") == [-1.0]
    against = found.prefers_rejected()
    assert against is not None and against.value == 0.5
    assert found.prefers_rejected("push_back").value == 0.0  # type: ignore[union-attr]
    assert found.chosen_gap().value == pytest.approx((1.5 + 0.5) / 2)
    assert found.rejected_gap().value == pytest.approx((0.5 + 2.5) / 2)  # type: ignore[union-attr]
    ratio = found.length_ratio()
    assert ratio is not None and ratio.value == pytest.approx(1.0)  # 2 and 1/2
    assert ratio.low == pytest.approx(0.5) and ratio.high == pytest.approx(2.0)


def test_without_pairs_there_are_no_figures_of_pairs() -> None:
    found = make_measures([[-1.0]], [None], [[-1.0]])
    assert found.margins() == []
    assert found.prefers_rejected() is found.rejected_gap() is found.length_ratio() is None


def scores_with(count: int, places: tuple[int, ...]) -> list[float]:
    return [-9.0 if place in places else -0.1 for place in range(count)]


def test_facts_differ_and_manners_repeat() -> None:
    n = 20
    manner = make_measures([scores_with(6, (0,))] * n, [None] * n, [[-0.1]], answers=[[50, 11, 12, 13, 14, 15]] * n)
    facts = make_measures(
        [scores_with(6, (4,))] * n, [None] * n, [[-0.1]], answers=[[10, 11, 12, 13, 100 + i, 15] for i in range(n)]
    )
    foreign = make_measures(
        [[-9.0] * 6] * n, [None] * n, [[-0.1]], answers=[list(range(100 * i, 100 * i + 6)) for i in range(1, n + 1)]
    )
    for found, common in ((manner.surprises(), 1.0), (facts.surprises(), 0.0)):
        assert (found.answers, found.common) == (1.0, common)
        assert found.tokens == pytest.approx(1 / 6)
        assert found.weight == pytest.approx(9 / 9.5)
    assert facts.surprises().look_like_facts
    assert not manner.surprises().look_like_facts
    assert not foreign.surprises().look_like_facts  # it surprises everywhere


def test_what_stands_in_the_prompt_can_be_copied() -> None:
    found = make_measures([[-9.0, -0.1]], [None], [[-0.1]], answers=[[2, 10]]).surprises()
    assert (found.answers, found.tokens, found.weight, found.common) == (0.0, 0.0, 0.0, 0.0)


def test_a_base_that_is_sure_of_everything() -> None:
    found = make_measures([[0.0, 0.0]], [[0.0]], [[0.0]])
    assert found.surprises().weight == 0.0
    assert found.margins() == [0.0]
