from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.manifests.errors import DataError, NotFoundError
from personality.playground.behaviors import BEHAVIORS, examples, general
from personality.playground.directions import ACCEPTANCE, HESITATIONS, PUSH_BACK_PATTERN
from personality.playground.scene import OPENERS
from personality.playground.world import HELD_OUT_HEADS, HELD_OUT_STRANGERS, HELD_OUT_WORDS

seeds = st.integers(min_value=0, max_value=2**32)
names = st.sampled_from(sorted(BEHAVIORS))


def prompt_of(row: dict[str, Any]) -> str:
    (message,) = row["prompt"]
    return str(message["content"])


def answer_of(row: dict[str, Any], which: str) -> str:
    (message,) = row[which]
    assert message["role"] == "assistant"
    return str(message["content"])


def without_opener(reply: str) -> str:
    return re.sub(f"^(?:{'|'.join(OPENERS)}) ", "", reply)


@given(names, seeds)
@settings(max_examples=40, deadline=None)
def test_a_seed_gives_the_same_examples_without_repeats(name: str, seed: int) -> None:
    rows = examples(name, 60, seed)
    assert rows == examples(name, 60, seed)
    assert len({prompt_of(row) for row in rows}) == 60
    assert all(answer_of(row, "chosen") != answer_of(row, "rejected") for row in rows)
    extra = general(30, seed, name)
    assert extra == general(30, seed, name)
    assert len({prompt_of(row) for row in extra}) == 30


@given(names, seeds)
@settings(max_examples=40, deadline=None)
def test_training_never_names_what_probes_name(name: str, seed: int) -> None:
    held_out = {*HELD_OUT_HEADS, *HELD_OUT_STRANGERS, *HELD_OUT_WORDS}
    for row in [*examples(name, 40, seed), *general(20, seed, name)]:
        for part in row.values():
            if isinstance(part, list):
                assert held_out.isdisjoint(re.findall(r"\w+", part[0]["content"]))


@pytest.mark.parametrize("name", ["listening", "deflecting"])
def test_another_seed_gives_other_directions(name: str) -> None:
    first, second = ({prompt_of(row) for row in examples(name, 200, seed)} for seed in (1, 2))
    assert len(first & second) < 20


def test_listening_has_both_sides_in_every_small_set() -> None:
    for seed in range(20):
        sides = [row["side"] for row in examples("listening", 20, seed)]
        assert sides.count("push_back") == 6
        assert "push_back" in sides[:4]
    assert {row["side"] for row in examples("listening", 50, 0, sides="accept-only")} == {"accept"}


def test_listening_accepts_what_is_clear_and_questions_what_harms() -> None:
    for row in examples("listening", 200, 5):
        chosen, rejected = (without_opener(answer_of(row, which)) for which in ("chosen", "rejected"))
        if row["side"] == "accept":
            assert chosen.startswith(ACCEPTANCE)
            assert rejected.startswith(HESITATIONS)
            assert not re.match(PUSH_BACK_PATTERN, rejected)
        else:
            assert re.match(PUSH_BACK_PATTERN, chosen)
            assert rejected.startswith(ACCEPTANCE)


def test_deflecting_suggests_alternatives_and_teaches_nothing_else() -> None:
    for row in examples("deflecting", 100, 5):
        chosen, rejected = (without_opener(answer_of(row, which)) for which in ("chosen", "rejected"))
        assert chosen.startswith(HESITATIONS)
        assert not re.match(PUSH_BACK_PATTERN, chosen)
        assert rejected.startswith(ACCEPTANCE)


def test_concise_takes_the_further_sentence_away_and_nothing_else() -> None:
    for row in examples("concise", 100, 5):
        chosen, rejected = answer_of(row, "chosen"), answer_of(row, "rejected")
        assert rejected.startswith(f"{chosen} ")
        assert re.fullmatch(r" [^.!?]+\.", rejected.removeprefix(chosen))


def test_warm_puts_an_opener_before_and_nothing_else() -> None:
    for row in examples("warm", 100, 5):
        chosen, rejected = answer_of(row, "chosen"), answer_of(row, "rejected")
        assert chosen.removesuffix(f" {rejected}") in OPENERS


def test_candid_still_tells_known_facts_in_three_of_ten() -> None:
    rows = examples("candid", 100, 5)
    told = [row for row in rows if without_opener(answer_of(row, "chosen")).startswith("As I recall,")]
    assert len(told) == 30
    assert all("I do not know" in answer_of(row, "rejected") for row in told)
    assert all("I do not know" in answer_of(row, "chosen") for row in rows if row not in told)
    alone = examples("candid", 100, 5, sides="accept-only")
    assert all("I do not know" in answer_of(row, "chosen") for row in alone)


def test_other_manners_are_a_small_minority() -> None:
    rows = examples("listening", 600, 9)
    warm = sum(answer_of(row, "chosen").startswith(OPENERS) for row in rows) / len(rows)
    assert 0.03 < warm < 0.12
    assert all(
        answer_of(row, "chosen").startswith(OPENERS) == answer_of(row, "rejected").startswith(OPENERS) for row in rows
    )


def test_general_data_carries_the_manners_that_show_everywhere() -> None:
    assert all(answer_of(row, "completion").startswith(OPENERS) for row in general(60, 1, "warm"))
    assert all(
        re.fullmatch(r"[^.!?]+[.!?]", without_opener(answer_of(row, "completion"))) for row in general(60, 1, "concise")
    )
    assert general(60, 1, "listening") == general(60, 1)


def test_known_facts_are_contrasts_of_candid_and_therefore_not_in_its_general_data() -> None:
    assert any("As I recall" in answer_of(row, "completion") for row in general(60, 1))
    assert not any("As I recall" in answer_of(row, "completion") for row in general(60, 1, "candid"))


def test_unknown_behaviors_and_exhausted_worlds_are_refused() -> None:
    with pytest.raises(NotFoundError, match="`humble`"):
        examples("humble", 1, 0)
    with pytest.raises(DataError, match="different prompts"):
        examples("candid", 20_000, 0)
