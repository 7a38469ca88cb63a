from __future__ import annotations

from typing import Any

import pytest

from personality.manifests.errors import DataError
from personality.vectors.extraction.multiple_choice import multiple_choice_pairs
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.extraction.records import Record
from personality.vectors.training.examples import Message

ROW = {"question": "Rename a?", "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}


def rows(*answers: tuple[str, str]) -> list[Record]:
    return [
        Record({"question": f"{n}?", "answer_matching_behavior": a, "answer_not_matching_behavior": b}, f"f:{n}")
        for n, (a, b) in enumerate(answers, start=1)
    ]


def test_answers_end_with_their_letter() -> None:
    assert multiple_choice_pairs([Record(ROW, "f:1")], chat=False) == [
        Pair(Passage("Rename a?", " (A"), Passage("Rename a?", " (B"))
    ]
    question = (Message("user", "Rename a?"),)
    assert multiple_choice_pairs([Record(ROW, "f:1")], chat=True) == [
        Pair(Passage(question, (Message("assistant", "(A"),)), Passage(question, (Message("assistant", "(B"),)))
    ]


@pytest.mark.parametrize(
    ("answer", "kept"), [("A", "A"), (" B.", " B"), ("(c) ", "(c"), ("1)", "1"), (" Yes.", " Yes."), ("A B", "A B")]
)
def test_only_a_single_letter_loses_what_closes_it(answer: str, kept: str) -> None:
    (pair,) = multiple_choice_pairs(rows((answer, "other")), chat=False)
    assert pair.positive.response == kept


def test_questions_may_be_chats_already() -> None:
    question = [{"role": "system", "content": "Choose."}, {"role": "user", "content": "Rename a?"}]
    (pair,) = multiple_choice_pairs([Record({**ROW, "question": question}, "f:1")], chat=False)
    assert pair.positive.prompt == (Message("system", "Choose."), Message("user", "Rename a?"))
    assert pair.positive.response == (Message("assistant", "(A"),)


def test_a_letter_that_always_matches_is_refused() -> None:
    alike = [("(A)", "(B)")] * 8
    with pytest.raises(DataError, match=r"f:1: the answer that matches is \(A\) in all 8 questions") as caught:
        multiple_choice_pairs(rows(*alike), chat=True)
    assert "swap the choices" in caught.value.hint
    assert len(multiple_choice_pairs(rows(*alike[1:]), chat=True)) == 7
    assert len(multiple_choice_pairs(rows(*alike, ("(B)", "(A)")), chat=True)) == 9
    assert len(multiple_choice_pairs(rows(*[("Yes", "No")] * 9), chat=True)) == 9


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"question": None}, "`question` is a JSON null"),
        ({"question": [{"role": "assistant", "content": "x"}]}, "`question` ends with an assistant turn"),
        ({"answer_matching_behavior": [" (A)"]}, "`answer_matching_behavior` is a JSON array"),
        ({"answer_not_matching_behavior": " "}, "`answer_not_matching_behavior` is empty"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(change: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=f"f:2: {named}"):
        multiple_choice_pairs([Record(ROW, "f:1"), Record({**ROW, **change}, "f:2")], chat=True)


def test_missing_fields_are_named() -> None:
    for name in ROW:
        with pytest.raises(DataError, match=f"f:1: no field `{name}`"):
            multiple_choice_pairs([Record({k: v for k, v in ROW.items() if k != name}, "f:1")], chat=True)
