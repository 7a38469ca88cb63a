from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.composition.layering import layered_names
from personality.composition.weight_diff import module_order, weight_changes, weight_diff
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


MODULES = {
    "model.embed_tokens.weight": (6, 4),
    "model.layers.0.mlp.down_proj.weight": (4, 5),
    "model.layers.0.self_attn.k_proj.weight": (2, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.1.self_attn.q_proj.weight": (4, 4),
}


@pytest.fixture
def rooms(tmp_path: Path) -> Workshop:
    """A base whose tensors have the names of a real architecture's modules."""
    return Workshop(tmp_path, {name: random_tensor(shape, 3, dtype=torch.bfloat16) for name, shape in MODULES.items()})


def module_vector(seed: int, size: float = 0.1) -> dict[str, Tensor]:
    return {name: random_tensor(shape, seed + index, size) for index, (name, shape) in enumerate(MODULES.items())}


def test_layers_are_the_sums_of_their_modules(rooms: Workshop) -> None:
    one, two = module_vector(1), module_vector(50)
    first, second = rooms.use(rooms.dense(one), 0.5), rooms.use(rooms.dense(two), 0.9)
    found = weight_changes(rooms.composer([first]), rooms.composer([first, second]))
    assert [(item.layer, item.module) for item in found.modules] == [
        (0, "attention.q"),
        (0, "attention.k"),
        (0, "mlp.down"),
        (1, "attention.q"),
        (None, "embedding"),
    ]
    down = next(item for item in found.modules if item.module == "mlp.down")
    assert down.norm_change == pytest.approx(
        0.9 * float(two["model.layers.0.mlp.down_proj.weight"].double().norm()), rel=1e-6
    )
    for layer in found.layers:
        own = [item for item in found.modules if item.layer == layer.layer]
        assert layer.elements == sum(item.elements for item in own)
        for figure in ("norm_before", "norm_after", "norm_change"):
            squares = sum(getattr(item, figure) ** 2 for item in own)
            assert getattr(layer, figure) == pytest.approx(math.sqrt(squares), rel=1e-9)
    assert found.norm_change == pytest.approx(
        0.9 * math.sqrt(sum(float((t.double() ** 2).sum()) for t in two.values()))
    )


def test_elements_that_change_before_and_after_rounding(rooms: Workshop) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    weights = rooms.base.tensor(name)
    half = torch.zeros(weights.shape)
    half[:2] = 1.0
    half[0, 0] = weights[0, 0].float() * 2**-12  # too small to move the bfloat16 weight
    found = weight_changes(rooms.composer([]), rooms.composer([rooms.use(rooms.dense({name: half}), 1.0)]))
    assert found.modules[0].changed == pytest.approx(8 / 16)
    assert found.modules[0].changed_rounded == pytest.approx(7 / 16)


def test_module_order() -> None:
    names = ["norm", "mlp.down", "attention.o", "attention.k", "gdn.out", "mlp.gate", "attention.q", "attention.other"]
    assert sorted(names, key=module_order) == [
        "attention.q",
        "attention.k",
        "attention.o",
        "attention.other",
        "gdn.out",
        "mlp.gate",
        "mlp.down",
        "norm",
    ]
