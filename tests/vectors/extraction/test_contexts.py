from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.contexts import add_system, with_shots, with_system
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.training.examples import Message, Text


def triplet(number: int, *, system: str = "") -> Pair:
    prompt: tuple[Message, ...] = (Message("user", f"Rename {number}."),)
    if system:
        prompt = (Message("system", system), *prompt)
    return Pair(
        Passage(prompt, (Message("assistant", f"Okay, {number}."),)),
        Passage(prompt, (Message("assistant", f"Why {number}?"),)),
        side="accept",
        where=f"f:{number}",
    )


def plain(number: int) -> Pair:
    return Pair(Passage(f"Q{number}:", f" yes {number}"), Passage(f"Q{number}:", f" no {number}"), where=f"f:{number}")


def contents(prompt: Text) -> list[str]:
    return [message.content for message in prompt if isinstance(message, Message)]


@given(count=st.integers(2, 9), shots=st.integers(1, 4), seed=st.integers(0, 5))
def test_shots_show_the_behavior_on_one_side_only(count: int, shots: int, seed: int) -> None:
    pairs = [triplet(number) for number in range(count)]
    if shots >= count:
        with pytest.raises(DataError, match=f"f:0: {shots} shots, but only {count - 1} other prompts"):
            with_shots(pairs, shots=shots, seed=seed)
        return
    found = with_shots(pairs, shots=shots, seed=seed)
    assert found == with_shots(pairs, shots=shots, seed=seed)
    for before, after in zip(pairs, found, strict=True):
        assert (after.side, after.where) == (before.side, before.where)
        assert after.positive.response == before.positive.response
        assert after.negative.response == before.negative.response
        positive, negative = contents(after.positive.prompt), contents(after.negative.prompt)
        assert len(positive) == len(negative) == 2 * shots + 1
        assert positive[0::2] == negative[0::2]  # the same questions on both sides
        assert positive[-1:] == contents(before.positive.prompt)
        assert len(set(positive[0::2])) == shots + 1  # nobody's own question, and none twice
        for question, good, bad in zip(positive[0:-1:2], positive[1::2], negative[1::2], strict=True):
            number = question.removeprefix("Rename ").removesuffix(".")
            assert (good, bad) == (f"Okay, {number}.", f"Why {number}?")


def test_seeds_and_pools_decide_what_is_drawn() -> None:
    pairs = [triplet(number) for number in range(12)]
    assert with_shots(pairs, seed=0) != with_shots(pairs, seed=1)
    held_out = with_shots(pairs[:3], shots=3, pool=pairs[9:])
    for pair in held_out:
        assert sorted(contents(pair.positive.prompt)[0:-1:2]) == ["Rename 10.", "Rename 11.", "Rename 9."]


def test_every_other_pair_has_its_chance() -> None:
    pairs = [triplet(number) for number in range(4)]
    drawn = {contents(with_shots(pairs, shots=1, seed=seed)[1].positive.prompt)[0] for seed in range(40)}
    assert drawn == {"Rename 0.", "Rename 2.", "Rename 3."}


def test_pairs_with_one_prompt_are_no_shots_for_each_other() -> None:
    again = Pair(
        triplet(0).positive, Passage(triplet(0).positive.prompt, (Message("assistant", "Never."),)), where="f:9"
    )
    pairs = [triplet(0), again, triplet(1)]
    for pair in with_shots(pairs, shots=1)[:2]:
        assert contents(pair.positive.prompt)[0] == "Rename 1."
    with pytest.raises(DataError, match="2 shots, but only 1 other prompts"):
        with_shots(pairs, shots=2)


def test_the_own_system_turn_stays_first_and_alone() -> None:
    pairs = [triplet(0, system="You are Pip."), triplet(1, system="You are Bob.")]
    found = with_shots(pairs, shots=1)[0].negative.prompt
    assert found == (
        Message("system", "You are Pip."),
        Message("user", "Rename 1."),
        Message("assistant", "Why 1?"),
        Message("user", "Rename 0."),
    )


def test_plain_texts_get_earlier_texts_of_their_own_form() -> None:
    pairs = [plain(0), triplet(1), plain(2), triplet(3)]
    first, second, *_ = with_shots(pairs, shots=1)
    assert first.positive == Passage("Q2: yes 2\n\nQ0:", " yes 0")
    assert first.negative == Passage("Q2: no 2\n\nQ0:", " no 0")
    assert contents(second.positive.prompt)[0] == "Rename 3."


def test_system_turns_stand_on_their_side() -> None:
    pairs = [triplet(number) for number in range(30)]
    good, bad = ["Do what is asked.", "Accept."], ["You are Pip.", None]
    found = with_system(pairs, good, bad, seed=3)
    assert found == with_system(pairs, good, bad, seed=3)
    assert found != with_system(pairs, good, bad, seed=4)
    for before, after in zip(pairs, found, strict=True):
        system, *rest = contents(after.positive.prompt)
        assert system in good
        assert rest == contents(before.positive.prompt)
        assert contents(after.negative.prompt) in (rest, ["You are Pip.", *rest])
        assert after.positive.response == before.positive.response
        assert after.negative.response == before.negative.response
    assert len({contents(pair.positive.prompt)[0] for pair in found}) == 2
    assert len({len(contents(pair.negative.prompt)) for pair in found}) == 2


def test_an_instruction_continues_a_system_turn_or_precedes_a_text() -> None:
    user = (Message("user", "Hi."),)
    assert add_system(user, "Be warm.") == (Message("system", "Be warm."), *user)
    assert add_system((Message("system", "A"), *user), "B") == (Message("system", "A\n\nB"), *user)
    assert add_system("Q:", "Be warm.") == "Be warm.\n\nQ:"
    assert add_system(user, None) is user


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        (Pair(Passage("a"), Passage("b"), where="f:1"), "f:1: no replies"),
        (Pair(Passage("a", "x"), Passage("b", "y")), "a pair: the two sides have different prompts"),
    ],
)
def test_contexts_are_for_triplets(pair: Pair, named: str) -> None:
    with pytest.raises(DataError, match=named):
        with_shots([plain(0), pair], shots=1)
    with pytest.raises(DataError, match=named):
        with_shots([plain(0)], shots=1, pool=[pair])
    with pytest.raises(DataError, match=named):
        with_system([plain(0), pair], ["a"], ["b"])


@pytest.mark.parametrize(
    ("positive", "negative", "named"),
    [([], ["b"], "no positive"), (["a"], [], "no negative"), (["a", "b"], [None, "b"], "'b' stands on both sides")],
)
def test_one_sided_descriptions_are_refused(positive: Any, negative: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        with_system([plain(0)], positive, negative)


def test_no_shots_are_no_context() -> None:
    with pytest.raises(UsageError, match="0 shots"):
        with_shots([plain(0), plain(1)], shots=0)
