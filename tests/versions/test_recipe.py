from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import NotFoundError, UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition, LayerRange, Personality, Use
from personality.manifests.repository import Repository
from personality.versions.changes import add, restore
from personality.versions.recipe import compare_recipes, find_vector, working_personality

BASE = BaseIdentity(source="base", fingerprint="b" * 64)


@st.composite
def personalities(draw: st.DrawFn) -> Personality:
    names = draw(st.lists(st.sampled_from(["candid", "concise", "listening", "warm"]), unique=True))
    uses = [
        Use(
            behavior=name,
            number=draw(st.integers(1, 2)),
            vector=draw(st.sampled_from("ab")) * 64,
            scale=draw(st.sampled_from([0.5, 1.0])),
            layers=draw(st.sampled_from([None, LayerRange(first=0, last=1)])),
        )
        for name in sorted(names)
    ]
    composition = Composition(method=draw(st.sampled_from(["linear", "ties"])), density=draw(st.sampled_from([0.1, 1])))
    return Personality(base=BASE, composition=composition, uses=tuple(uses))


@given(personalities(), personalities())
def test_no_difference_means_the_same_personality(one: Personality, other: Personality) -> None:
    changes = compare_recipes(one, other)
    assert (changes == []) == (one.id == other.id)
    assert compare_recipes(one, one) == []
    back = compare_recipes(other, one)
    assert [(c.what, c.before, c.after) for c in changes] == [(c.what, c.after, c.before) for c in back]
    for change in changes:
        assert change.before != change.after


def test_how_changes_read() -> None:
    one = Personality(base=BASE, uses=(Use(behavior="a", number=1, vector="a" * 64, scale=1),))
    twin = Personality(base=BASE, uses=(Use(behavior="a", number=1, vector="c" * 64, scale=1),))
    other = one.model_copy(update={"base": BASE.model_copy(update={"fingerprint": "d" * 64})})
    assert [str(change) for change in compare_recipes(one, twin)] == ["~ a@1 × 1 (aaaa) → a@1 × 1 (cccc)"]
    assert [change.what for change in compare_recipes(one, other)] == ["base"]
    assert [str(change) for change in compare_recipes(one, one.without("a"))] == ["- a@1 × 1"]


def second_vector(repository: Repository, number: int) -> str:
    """Another vector of `listening`, as another branch would have made it: a copy under another id."""
    first = find_vector(repository, VectorLabel("listening", 1))
    twin = f"{'0' * 8}{first.id[8:]}"
    data = {**first.as_json(), "id": twin, "number": number}
    (repository.root / "manifests" / f"{twin}.json").write_text(json.dumps(data))
    path = repository.vector_path(twin)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(repository.vector_path(first.id).read_bytes())
    return twin


def test_finding_vectors(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    first = find_vector(repository, VectorLabel("listening"))
    assert first.label == "listening@1"
    second_vector(repository, 2)
    assert find_vector(repository, VectorLabel("listening")).number == 2
    assert find_vector(repository, VectorLabel("listening", 1)) == first
    assert find_vector(repository, VectorLabel("listening", 1, first.id[:6])) == first
    for label in (VectorLabel("listening", 3), VectorLabel("listening", 1, "0000")):
        with pytest.raises(NotFoundError) as caught:
            find_vector(repository, label)
        assert "did you mean `listening@" in caught.value.hint
    with pytest.raises(NotFoundError, match="there is no vector `warm`") as missing:
        find_vector(repository, VectorLabel("warm"))
    assert "`persona train warm --data FILE --general FILE`" in missing.value.hint


def test_a_number_that_two_branches_gave(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    twin = second_vector(repository, 1)
    with pytest.raises(UsageError, match="means two vectors, made on two branches") as caught:
        find_vector(repository, VectorLabel("listening", 1))
    assert f"`listening@1:{twin[:4]}`" in caught.value.hint
    add(repository, VectorLabel("listening", 1, twin[:8]), 0.5)
    (use,) = working_personality(repository).uses
    assert use.vector == twin
    restore(repository, "v1")
    restore(repository, "v2")
    assert working_personality(repository).uses == (use,)
