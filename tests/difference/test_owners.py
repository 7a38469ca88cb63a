from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.composition.composer import Composer
from personality.composition.weight_diff import Owner, weight_changes
from personality.difference.owners import COMPOSITION, parts_of
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition, LayerRange, Personality, Use
from personality.vectors.task_vector import open_task_vector
from tests.composition.conftest import Workshop, random_tensor

SHAPES = {"model.embed_tokens.weight": (5, 4), "model.layers.0.mlp.up_proj.weight": (4, 4)}
TIES = Composition(method="ties", density=0.5)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, {name: random_tensor(shape, 1, dtype=torch.bfloat16) for name, shape in SHAPES.items()})


def vector(seed: int) -> dict[str, Tensor]:
    return {name: random_tensor(shape, seed + index, 0.1) for index, (name, shape) in enumerate(SHAPES.items())}


def personality(*uses: Use, composition: Composition | None = None) -> Personality:
    return Personality(
        base=BaseIdentity(source="base", fingerprint="0" * 64),
        composition=composition or Composition(),
        uses=tuple(sorted(uses, key=lambda use: use.behavior)),
    )


def owners(shop: Workshop, before: Personality, after: Personality) -> dict[str, Owner]:
    def compose(recipe: Personality) -> Composer:
        vectors = {
            use.vector: open_task_vector(shop.repository, use.vector, use.label, reread=True) for use in recipe.uses
        }
        return Composer(shop.base, recipe, vectors)

    found = weight_changes(compose(before), compose(after), parts_of(before, after, compose))
    return {owner.what: owner for owner in found.owners}


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().reshape(-1) for name in SHAPES])


def test_one_change_owns_everything(shop: Workshop) -> None:
    use = shop.use(shop.dense(vector(1)), 0.8)
    found = owners(shop, personality(), personality(use))
    assert found.keys() == {"aged"}
    assert found["aged"].share == pytest.approx(1)
    assert found["aged"].norm == pytest.approx(0.8 * float(flat(vector(1)).norm()), rel=1e-6)
    assert owners(shop, personality(use), personality(use)) == {}


def test_linear_shares_are_projections_and_add_up(shop: Workshop) -> None:
    taus = [vector(seed) for seed in (1, 20, 40)]
    one, two, three = (shop.use(shop.dense(tau), scale) for tau, scale in zip(taus, (0.5, 0.8, -0.3), strict=True))
    scaled = one.model_copy(update={"scale": 0.9})
    found = owners(shop, personality(one, two), personality(scaled, three))
    parts = {"aged": 0.4 * flat(taus[0]), "brisk": -0.8 * flat(taus[1]), "calm": -0.3 * flat(taus[2])}
    change = sum(parts.values(), torch.zeros(36, dtype=torch.float64))
    for name, part in parts.items():
        assert found[name].share == pytest.approx(float(part @ change / (change @ change)), rel=1e-5)
        assert found[name].norm == pytest.approx(float(part.norm()), rel=1e-5)
        assert found[name].exact
    assert sum(owner.share for owner in found.values()) == pytest.approx(1, rel=1e-5)


def test_a_part_against_the_change_is_negative(shop: Workshop) -> None:
    tau = vector(1)
    same = {name: tensor * 3 for name, tensor in tau.items()}
    one, two = shop.use(shop.dense(tau), 1.0), shop.use(shop.dense(same), -1.0)
    found = owners(shop, personality(), personality(one, two))
    assert found["aged"].share == pytest.approx(-0.5, rel=1e-5)
    assert found["brisk"].share == pytest.approx(1.5, rel=1e-5)


def test_a_vector_moved_to_other_layers(shop: Workshop) -> None:
    use = shop.use(shop.dense(vector(1)), 1.0)
    other = shop.use(shop.dense(vector(9)), 1.0)
    first = use.model_copy(update={"layers": LayerRange(first=0, last=0)})
    found = owners(shop, personality(use), personality(first, other))
    assert found["aged"].norm == pytest.approx(float(vector(1)["model.embed_tokens.weight"].double().norm()), rel=1e-6)


def test_two_changes_under_ties_add_up(shop: Workshop) -> None:
    kept, one, two = (shop.use(shop.dense(vector(seed)), 1.0) for seed in (1, 20, 40))
    before, after = personality(kept, composition=TIES), personality(kept, one, two, composition=TIES)
    found = owners(shop, before, after)
    assert found.keys() == {"brisk", "calm"}
    assert all(owner.exact for owner in found.values())
    assert sum(owner.share for owner in found.values()) == pytest.approx(1, rel=1e-6)
    # Twins do the same, so each owns half.
    twin = Use(behavior="dry", number=1, vector=one.vector, scale=1.0)
    found = owners(shop, personality(kept, composition=TIES), personality(kept, one, twin, composition=TIES))
    assert found["brisk"].share == pytest.approx(0.5)
    assert found["dry"].share == pytest.approx(0.5)


def test_three_changes_under_ties_are_an_approximation(shop: Workshop) -> None:
    uses = [shop.use(shop.dense(vector(seed)), 1.0) for seed in (1, 20, 40)]
    found = owners(shop, personality(composition=TIES), personality(*uses, composition=TIES))
    assert len(found) == 3
    assert not any(owner.exact for owner in found.values())
    assert sum(owner.share for owner in found.values()) == pytest.approx(1, abs=0.3)


def test_the_composition_can_own_the_change(shop: Workshop) -> None:
    one, two = (shop.use(shop.dense(vector(seed)), 1.0) for seed in (1, 20))
    found = owners(shop, personality(one, two), personality(one, two, composition=TIES))
    assert found.keys() == {COMPOSITION}
    found = owners(shop, personality(one), personality(one, two, composition=TIES))
    assert found.keys() == {COMPOSITION, "brisk"}
    assert sum(owner.share for owner in found.values()) == pytest.approx(1, rel=1e-6)


def test_steering_settings_own_no_weights(shop: Workshop) -> None:
    one = shop.use(shop.dense(vector(1)), 1.0)
    orthogonal = Composition(method="ties", density=0.5, steering="orthogonal")
    doubled = one.model_copy(update={"scale": 2.0})
    found = owners(shop, personality(one, composition=TIES), personality(doubled, composition=orthogonal))
    assert found.keys() == {"aged"}
    assert found["aged"].share == pytest.approx(1)
