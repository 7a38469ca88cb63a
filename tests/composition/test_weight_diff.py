from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.composition.layering import layered_names
from personality.composition.weight_diff import weight_diff
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import LayerRange, Use
from tests.composition.conftest import Workshop, random_tensor

SHAPES = {"model.embed_tokens.weight": (6, 4), "model.layers.0.w.weight": (4, 4), "model.layers.1.w.weight": (4, 4)}


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, {name: random_tensor(shape, 1, dtype=torch.bfloat16) for name, shape in SHAPES.items()})


def vector(seed: int) -> dict[str, Tensor]:
    return {name: random_tensor(shape, seed + index, 0.1) for index, (name, shape) in enumerate(SHAPES.items())}


def test_a_version_and_itself(shop: Workshop) -> None:
    composer = shop.composer([shop.use(shop.dense(vector(1)), 0.5)])
    layers = weight_diff(composer, composer)
    assert [entry.layer for entry in layers] == [0, 1, None]
    for entry in layers:
        assert entry.norm_change == 0
        assert entry.norm_before == entry.norm_after > 0
        assert entry.cosine == pytest.approx(1)
        assert entry.sign_flips == 0


def test_two_bases_are_no_difference(shop: Workshop) -> None:
    assert weight_diff(shop.composer([]), shop.composer([])) == []


def test_adding_and_taking_away(shop: Workshop) -> None:
    tau = vector(1)
    base, added = shop.composer([]), shop.composer([shop.use(shop.dense(tau), -0.5)])
    for before, after in ((base, added), (added, base)):
        layers = {entry.layer: entry for entry in weight_diff(before, after)}
        for layer, name in ((None, "model.embed_tokens.weight"), (0, "model.layers.0.w.weight")):
            entry, norm = layers[layer], 0.5 * float(tau[name].double().norm())
            assert entry.elements == tau[name].numel()
            assert entry.norm_change == pytest.approx(norm, rel=1e-6)
            assert sorted([entry.norm_before, entry.norm_after]) == pytest.approx([0, norm], rel=1e-6)
            assert entry.cosine is None
            assert entry.sign_flips is None


def test_negation_flips_every_sign(shop: Workshop) -> None:
    stored = shop.dense(vector(1))
    for entry in weight_diff(shop.composer([shop.use(stored, 0.8)]), shop.composer([shop.use(stored, -0.4)])):
        assert entry.cosine == pytest.approx(-1)
        assert entry.sign_flips == 1
        assert entry.norm_change == pytest.approx(1.5 * entry.norm_before, rel=1e-6)


def test_two_vectors_against_float64(shop: Workshop) -> None:
    one, two = vector(1), vector(20)
    first = shop.use(shop.dense(one), 0.7)
    both = [first, shop.use(shop.dense(two), -1.1)]
    found = {entry.layer: entry for entry in weight_diff(shop.composer([first]), shop.composer(both))}
    name = "model.layers.1.w.weight"
    before = 0.7 * one[name].double()
    after = before - 1.1 * two[name].double()
    assert found[1].norm_before == pytest.approx(float(before.norm()), rel=1e-6)
    assert found[1].norm_after == pytest.approx(float(after.norm()), rel=1e-6)
    assert found[1].norm_change == pytest.approx(float((after - before).norm()), rel=1e-6)
    assert found[1].cosine == pytest.approx(float((before * after).sum() / before.norm() / after.norm()), rel=1e-6)
    assert found[1].sign_flips == pytest.approx(float((before.sign() != after.sign()).double().mean()))


def test_only_touched_layers_are_shown(shop: Workshop) -> None:
    use = shop.use(shop.dense(vector(1)), 1.0, layers=LayerRange(first=1, last=1))
    assert [entry.layer for entry in weight_diff(shop.composer([]), shop.composer([use]))] == [1]


@pytest.fixture
def use() -> Callable[[LayerRange | None], Use]:
    return lambda layers: Use(behavior="b", number=2, vector="0" * 64, scale=1, layers=layers)


def test_layered_names(use: Callable[[LayerRange | None], Use]) -> None:
    names = list(SHAPES)
    assert layered_names(use(None), names, names) == names
    assert layered_names(use(LayerRange(first=0, last=0)), names, names) == ["model.layers.0.w.weight"]
    with pytest.raises(IncompatibleError, match="`b@2` is to act in layers 0-2, the base has layers 0-1"):
        layered_names(use(LayerRange(first=0, last=2)), names, names)
    with pytest.raises(IncompatibleError, match="`b@2` changes nothing in layers 0-1"):
        layered_names(use(LayerRange(first=0, last=1)), ["model.embed_tokens.weight"], names)
