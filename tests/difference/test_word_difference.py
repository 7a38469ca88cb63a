from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from personality.difference.word_difference import WordRun, word_difference


def test_words_that_only_one_text_has() -> None:
    old, new = word_difference("Okay, I moved it. All is well.", "Wonderful! Okay, I moved it.")
    assert old == [WordRun("Okay, I moved it.", own=False), WordRun(" All is well.", own=True)]
    assert new == [WordRun("Wonderful! ", own=True), WordRun("Okay, I moved it.", own=False)]


def test_a_changed_phrase_is_one_passage() -> None:
    old, new = word_difference("It is red hot now", "It is deep blue now")
    assert old == [WordRun("It is ", False), WordRun("red hot", True), WordRun(" now", False)]
    assert new == [WordRun("It is ", False), WordRun("deep blue", True), WordRun(" now", False)]


def test_equal_and_empty_texts() -> None:
    assert word_difference("a b", "a b") == ([WordRun("a b", False)], [WordRun("a b", False)])
    assert word_difference("", "a") == ([], [WordRun("a", True)])


@given(st.text("ab .\n", max_size=30), st.text("ab .\n", max_size=30))
def test_nothing_is_lost(first: str, second: str) -> None:
    old, new = word_difference(first, second)
    assert "".join(item.text for item in old) == first
    assert "".join(item.text for item in new) == second
    for passages in (old, new):
        assert all(a.own != b.own for a, b in itertools.pairwise(passages))
