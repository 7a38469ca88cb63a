"""Bisection over histories that are drawn: with merges, and with versions that cannot be told."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from personality.searching.first_broken import ancestors, first_broken


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, tuple[str, ...]], str, set[str]]:
    """Parents of each version, oldest first; which one broke it; and which cannot be told."""
    count = draw(st.integers(2, 25))
    parents: dict[str, tuple[str, ...]] = {"0": ()}
    for number in range(1, count):
        earlier = list(parents)
        # Mostly the version before; at times a branch from further back, or a merge of two.
        first = draw(st.one_of(st.just(earlier[-1]), st.sampled_from(earlier)))
        second = draw(st.one_of(st.just(first), st.sampled_from(earlier)))
        parents[str(number)] = tuple(sorted({first, second}))
    bad = str(count - 1)
    on_the_way = sorted(ancestors(parents, bad) - {"0"}, key=int)
    culprit = draw(st.sampled_from(on_the_way))
    skipped = draw(st.sets(st.sampled_from(on_the_way))) - {bad}
    return parents, culprit, skipped


@given(histories())
def test_finds_what_broke_it(drawn: tuple[dict[str, tuple[str, ...]], str, set[str]]) -> None:
    parents, culprit, skipped = drawn
    bad = list(parents)[-1]
    looked: list[str] = []

    def look(name: str) -> bool | None:
        looked.append(name)
        return None if name in skipped else culprit in ancestors(parents, name)

    found = first_broken(parents, "0", bad, look)
    assert culprit in found
    assert set(found[1:]) <= skipped
    assert culprit in ancestors(parents, found[0])
    assert len(looked) == len(set(looked))
    assert not {"0", bad} & set(looked)
    if not skipped:
        assert found == [culprit]


@given(st.integers(2, 200), st.data())
def test_a_straight_history_takes_few_looks(count: int, data: st.DataObject) -> None:
    parents = {str(number): (str(number - 1),) if number else () for number in range(count)}
    culprit = data.draw(st.integers(1, count - 1))
    looked: list[str] = []

    def look(name: str) -> bool:
        looked.append(name)
        return int(name) >= culprit

    assert first_broken(parents, "0", str(count - 1), look) == [str(culprit)]
    assert len(looked) <= math.ceil(math.log2(count))


def test_two_good_branches_can_break_each_other() -> None:
    parents = {"base": (), "left": ("base",), "right": ("base",), "merge": ("left", "right"), "after": ("merge",)}
    assert first_broken(parents, "base", "after", lambda name: name in ("merge", "after")) == ["merge"]


def test_skipped_versions_beside_the_break_are_named() -> None:
    parents = {str(number): (str(number - 1),) if number else () for number in range(6)}
    verdicts = {"1": False, "2": None, "3": None, "4": True}
    assert first_broken(parents, "0", "5", verdicts.__getitem__) == ["4", "2", "3"]
