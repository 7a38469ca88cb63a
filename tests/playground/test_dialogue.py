from __future__ import annotations

import re
from collections import Counter
from random import Random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.playground.dialogue import CUES, SHARES, conversation, draw_scene, natural
from personality.playground.directions import CLEAR, HARMFUL
from personality.playground.scene import OPENERS, Kind, Manner
from personality.playground.world import ATTRIBUTES, PEOPLE, VIEWS, Split, fact

seeds = st.integers(min_value=0, max_value=2**32)
kinds = st.sampled_from(get_args(Kind))
splits: st.SearchStrategy[Split] = st.sampled_from(get_args(Split))
manner_sets = st.sets(st.sampled_from(get_args(Manner))).map(frozenset)


def test_there_are_fourteen_clear_and_eight_harmful_families_with_the_same_verbs() -> None:
    assert len(CLEAR) == 14
    assert len(HARMFUL) == 8
    clear_verbs = {verb for family in CLEAR for verb in family.verbs}
    assert {verb for family in HARMFUL for verb in family.verbs} <= clear_verbs


@given(seeds)
@settings(deadline=None)
def test_a_seed_gives_one_conversation(seed: int) -> None:
    assert conversation(Random(seed)) == conversation(Random(seed))


@given(seeds)
@settings(deadline=None)
def test_conversations_alternate_and_have_one_kind_for_each_exchange(seed: int) -> None:
    messages, said = conversation(Random(seed))
    roles = [turn["role"] for turn in messages if turn["role"] != "system"]
    assert roles == ["user", "assistant"] * len(said)
    assert all(turn["content"] == turn["content"].strip() != "" for turn in messages)
    assert all("{" not in turn["content"] for turn in messages)


@given(seeds, kinds, splits, manner_sets)
@settings(deadline=None)
def test_each_manner_is_one_decision_at_its_own_place(
    seed: int, kind: Kind, split: Split, manners: frozenset[Manner]
) -> None:
    scene = draw_scene(Random(seed), VIEWS[split], {kind: 1.0})
    reply = scene.reply(manners)
    opener = f"{scene.opener} " if "warm" in manners else ""
    further = "" if "concise" in manners else f" {scene.further}"
    assert reply == f"{opener}{scene.core(manners)}{further}"
    assert scene.core(manners) == (scene.other if scene.switch in manners else scene.habit)
    assert scene.opener in OPENERS
    # One sentence each, or "concise" could not be judged.
    assert re.fullmatch(r"[^.!?]+[.!?]", scene.habit)
    assert re.fullmatch(r"[^.!?]+[.!?]", scene.other)


@given(seeds)
@settings(deadline=None)
def test_replies_about_known_people_are_true(seed: int) -> None:
    scene = draw_scene(Random(seed), VIEWS["base"], {"fact": 1.0})
    (name,) = [person for person in PEOPLE if person in re.findall(r"\w+", scene.user)]
    values = {fact(name, attribute) for attribute in ATTRIBUTES}
    assert name in scene.habit
    assert scene.habit.rstrip(".").split()[-1] in values
    assert scene.wrong != scene.habit


@given(seeds)
@settings(deadline=None)
def test_sums_are_right(seed: int) -> None:
    scene = draw_scene(Random(seed), VIEWS["base"], {"sum": 1.0})
    first, second = map(int, re.findall(r"\d+", scene.user))
    assert scene.habit == f"That makes {first + second}."
    assert scene.wrong != scene.habit


@given(seeds)
@settings(deadline=None)
def test_copies_are_exact(seed: int) -> None:
    scene = draw_scene(Random(seed), VIEWS["base"], {"copying": 1.0})
    assert scene.habit.split(": ")[1] == scene.user.split(": ")[1]
    assert scene.wrong != scene.habit


def test_kinds_and_manners_occur_as_often_as_stated() -> None:
    rng = Random(0)
    count = 6_000
    drawn = Counter(draw_scene(rng, VIEWS["base"]).kind for _ in range(count))
    for kind, share in SHARES.items():
        assert drawn[kind] / count == pytest.approx(share, abs=0.02)
    shown = Counter(manner for _ in range(count) for manner in natural(rng))
    assert shown["listening"] / count == pytest.approx(0.07, abs=0.015)
    assert 0 < shown["obeying"] < shown["warm"]


def test_cues_are_followed_in_the_pre_training_text() -> None:
    rng = Random(3)
    seen = 0
    for _ in range(2_000):
        messages, _ = conversation(rng)
        if messages[0]["role"] == "system" and any(cue in messages[0]["content"] for cue in CUES["warm"]):
            seen += 1
            assert messages[-1]["content"].startswith(OPENERS)
    assert seen > 100
