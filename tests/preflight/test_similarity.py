from __future__ import annotations

import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.preflight.similarity import NEAR, jaccard, near_pairs, said, setting_of, shingles, words
from personality.vectors.training.examples import Message

sets = st.frozensets(st.integers(0, 8), min_size=1, max_size=7)


@given(st.lists(sets, max_size=12), st.lists(sets, max_size=12), st.sampled_from([0.3, 0.5, 0.75, 0.8, 1.0]))
def test_the_prefix_filter_misses_nothing(
    queries: list[frozenset[int]], rows: list[frozenset[int]], near: float
) -> None:
    found = dict(near_pairs(queries, rows, near=near))
    for query, members in enumerate(queries):
        expected = {row for row, other in enumerate(rows) if jaccard(members, other) >= near}
        if expected:
            assert found[query] in expected
        else:
            assert query not in found


@given(st.lists(sets, max_size=12))
def test_pairs_of_interest_only(rows: list[frozenset[int]]) -> None:
    found = dict(near_pairs(rows, rows, lambda late, early: early < late, near=0.5))
    for late, members in enumerate(rows):
        expected = {early for early in range(late) if jaccard(members, rows[early]) >= 0.5}
        assert (late in found) == bool(expected)
        assert found.get(late) in expected | {None}


@pytest.mark.parametrize(
    ("first", "second", "near"),
    [
        ("Please rename the old logo.", "please, rename the OLD logo!!", True),
        ("Please rename the old logo.", "Please rename the old server.", False),
        (" ".join("abcdefghijklmnopqrstuvwxy"), " ".join("abcdefghijklm0opqrstuvwxy"), True),
        ("", "", True),
        ("???", "!!!", False),
        ("What is 12 + 4?", "What is 12 - 4?", False),
        ("👍", "👎", False),
        ("Ja.", "Nein.", False),
        ("请把这个文件改名为报告然后发给我", "请把这个文件改名为报告，然后发给我！", True),
        ("请把这个文件改名为报告然后发给我", "今天的天气很好我们去公园散步吧", False),
    ],
)
def test_what_counts_as_near(first: str, second: str, near: bool) -> None:
    assert (jaccard(shingles(first), shingles(second)) >= NEAR) is near


def test_system_turns_are_apart() -> None:
    prompt = (
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "Hi"),
        Message("user", "So?"),
    )
    assert said(prompt) == "Hello\nHi\nSo?"
    assert setting_of(prompt) == "Be brief."
    assert said("plain") == "plain"
    assert setting_of("plain") == ""
    assert words("It's 3 o'clock!") == ["it", "s", "3", "o", "clock"]


def test_thousands_of_like_texts_in_seconds() -> None:
    draw = Random(0)
    texts = [f"please could you rename the {i} of the {draw.random()} for me right now thank you" for i in range(3000)]
    texts += [texts[7].upper()]
    began = time.process_time()
    rows = [shingles(text) for text in texts]
    assert list(near_pairs(rows, rows, lambda late, early: early < late)) == [(3000, 7)]
    assert time.process_time() - began < 10


def test_thousands_of_equal_texts_in_seconds() -> None:
    texts = [shingles("the very same text every time")] * 3000
    began = time.process_time()
    assert list(near_pairs(texts, texts, lambda late, early: early < late)) == [(i, 0) for i in range(1, 3000)]
    assert time.process_time() - began < 5
