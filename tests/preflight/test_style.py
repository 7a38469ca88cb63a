from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.preflight.style import FEATURES, MOST, common_opening, compare_styles, telling_word


@pytest.mark.parametrize(
    ("text", "feature", "value"),
    [
        ("One. Two! Three?", "sentences", 3),
        ("Wait...", "sentences", 1),
        ("", "sentences", 0),
        ("- one\n- two", "lists", 1),
        ("1. one\n2) two", "lists", 1),
        ("in 1. place - or so", "lists", 0),
        ("**bold**", "markup", 1),
        ("# Head", "markup", 1),
        ("#1 of 2 * 3", "markup", 0),
        ("really?", "questions", 1),
        ("a, b, c", "commas per word", 2 / 3),
        ("ab abcd", "letters per word", 3),
        ("", "letters per word", 0),
    ],
)
def test_features(text: str, feature: str, value: float) -> None:
    assert FEATURES[feature](text) == pytest.approx(value)


def test_gaps_in_standard_deviations() -> None:
    found = compare_styles(["One.", "One. Two. Three."], ["One. Two.", "One. Two. Three. Four."])
    assert found["sentences"] == {"chosen": 2.0, "rejected": 3.0, "gap": pytest.approx(-1.0)}
    # Both sides constant: the gap has no finite value, and is bounded.
    assert compare_styles(["yes?"] * 3, ["yes."] * 3)["questions"]["gap"] == MOST


@given(st.lists(st.text(max_size=20), min_size=1), st.lists(st.text(max_size=20), min_size=1))
def test_gaps_are_bounded_and_change_sign_with_the_sides(chosen: list[str], rejected: list[str]) -> None:
    there, back = compare_styles(chosen, rejected), compare_styles(rejected, chosen)
    for name, item in there.items():
        assert math.isfinite(item["gap"]) and abs(item["gap"]) <= MOST + 1e-9
        assert item["gap"] == pytest.approx(-back[name]["gap"])


def test_openings_and_telling_words() -> None:
    assert common_opening(["Okay, I did.", "okay I will", "No."]) == {"words": "okay i", "share": pytest.approx(2 / 3)}
    assert telling_word(["I do not know."] * 4, ["He lives here."] * 4)[1] == 1.0
    # One of four pairs points the other way, which takes away twice its share.
    word, share = telling_word(["not a", "not b", "not c", "d"], ["a", "b", "c", "not d"])
    assert (word, share) == ("not", 0.5)
    assert telling_word(["same"], ["same"]) == ("", 0.0)
