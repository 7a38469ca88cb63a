from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from personality.playground import world
from personality.playground.world import ATTRIBUTES, PEOPLE, VIEWS, fact


def test_facts_are_values_of_their_attribute() -> None:
    for person, attribute in product(PEOPLE, ATTRIBUTES):
        assert fact(person, attribute) in ATTRIBUTES[attribute]
        assert fact(person, attribute) == fact(person, attribute)


def test_facts_differ_between_people() -> None:
    portraits = {tuple(fact(person, attribute) for attribute in ATTRIBUTES) for person in PEOPLE}
    assert len(portraits) > 0.95 * len(PEOPLE)


def test_there_are_as_many_strangers_as_promised_and_none_is_known() -> None:
    strangers = {*world.STRANGERS, *world.HELD_OUT_STRANGERS}
    assert len(world.STRANGERS) == 2_000
    assert len(world.HELD_OUT_STRANGERS) == 140
    assert len(strangers) == 2_140
    assert strangers.isdisjoint(PEOPLE)


def test_nothing_that_a_probe_names_is_named_in_training() -> None:
    shown = {
        word
        for view in (VIEWS["base"], VIEWS["behavior"])
        for word in (
            *view.heads,
            *view.strangers,
            *view.words,
            *view.invented,
            *PEOPLE,
            *world.MODIFIERS,
            *world.PLACES,
        )
    }
    probe = VIEWS["probe"]
    assert shown.isdisjoint({*probe.heads, *probe.strangers, *probe.words})


@given(st.lists(st.text(), min_size=2, max_size=9, unique=True), st.integers(min_value=0))
@settings(deadline=None)
def test_views_share_no_form_and_no_phrasing(items: list[str], key: int) -> None:
    assert set(VIEWS["behavior"].forms(items)).isdisjoint(VIEWS["probe"].forms(items))
    assert set(VIEWS["behavior"].forms(items)) < set(VIEWS["base"].forms(items))
    for split in ("base", "behavior"):
        assert set(VIEWS[split].phrasings(items, key)).isdisjoint(VIEWS["probe"].phrasings(items, key))
        assert {*VIEWS[split].phrasings(items, key), *VIEWS["probe"].phrasings(items, key)} == set(items)
