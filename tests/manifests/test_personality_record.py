from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import UsageError
from personality.manifests.personality_record import Composition, LayerRange, Personality, Use

BASE = BaseIdentity(source="base", fingerprint="b" * 64)


def use(behavior: str, **fields: Any) -> Use:
    return Use(**{"behavior": behavior, "number": 1, "vector": "a" * 64, "scale": 1.0, **fields})


@given(st.permutations(["candid", "concise", "listening", "warm"]))
def test_the_order_of_adding_does_not_enter(order: list[str]) -> None:
    personality = Personality(base=BASE)
    for name in order:
        personality = personality.with_use(use(name))
    assert [item.behavior for item in personality.uses] == sorted(order)
    reference = Personality(base=BASE, uses=tuple(use(name) for name in sorted(order)))
    assert personality == reference
    assert personality.id == reference.id
    for name in order[::-1]:
        personality = personality.without(name)
    assert personality.id == Personality(base=BASE).id


def test_identity_is_of_the_weights_only() -> None:
    one = Personality(base=BASE, uses=(use("a"),))
    moved = one.model_copy(update={"base": BASE.model_copy(update={"source": "/elsewhere"})})
    assert moved.id == one.id
    # linear has no density: what it would be under another method does not enter
    assert one.model_copy(update={"composition": Composition(density=0.9)}).id == one.id
    assert one.model_copy(update={"composition": Composition(method="ties")}).id != one.id
    assert one.with_use(use("a", scale=0.5)).id != one.id
    assert one.with_use(use("a", layers=LayerRange(first=0, last=1))).id != one.id
    assert one.with_use(use("a", scale=-0.0)).id == one.with_use(use("a", scale=0.0)).id


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scales_are_finite(scale: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        use("a", scale=scale)


def test_a_personality_has_each_behavior_once_and_sorted() -> None:
    for uses in ((use("a"), use("a")), (use("b"), use("a"))):
        with pytest.raises(ValidationError, match="sorted by behavior, each once"):
            Personality(base=BASE, uses=uses)


@given(st.integers(0, 200), st.integers(0, 200))
def test_layer_ranges_round_trip(one: int, other: int) -> None:
    first, last = sorted((one, other))
    layers = LayerRange(first=first, last=last)
    assert LayerRange.parse(str(layers)) == layers
    assert [n for n in range(202) if n in layers] == list(range(first, last + 1))
    assert LayerRange.parse(str(first)) == LayerRange(first=first, last=first)


@pytest.mark.parametrize("text", ["", "-", "3-", "-3", "a-b", "5-3", "1-2-3", "1.5", "1,2"])
def test_what_is_no_layer_range(text: str) -> None:
    with pytest.raises(UsageError, match="not a range of layers"):
        LayerRange.parse(text)
    with pytest.raises(ValidationError, match="ends before it begins"):
        LayerRange(first=2, last=1)


def test_how_it_reads() -> None:
    personality = Personality(base=BASE, uses=(use("a", scale=0.8, density=0.1, layers=LayerRange(first=1, last=2)),))
    assert str(personality) == "a@1 × 0.8, layers 1-2, density 0.1"
    assert str(Personality(base=BASE)) == "the base alone"
    assert str(Composition()) == "linear"
    assert str(Composition.model_validate({"method": "ties", "lambda": 2})) == (
        "ties (density 0.2, sum, per vector, lambda 2)"
    )
