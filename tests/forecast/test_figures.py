"""The figures of a forecast against known answers and against brute force over whole vectors."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.manifests.personality_record import Composition, LayerRange, Use
from tests.forecast.conftest import NAMES, SHAPES, Recipes, flat, random_vector

WHOLE = Composition(method="ties", density=1)


def test_vectors_that_share_no_element_leave_each_other_alone(recipes: Recipes) -> None:
    first, second = random_vector(1), random_vector(2)
    for name in NAMES:
        first[name][:, :2] = 0
        second[name][:, 2:] = 0
    uses = [recipes.use(recipes.dense(first), 0.8), recipes.use(recipes.dense(second), -1.2)]
    for composition in (Composition(), WHOLE, WHOLE.model_copy(update={"normalize": "mean"})):
        found, (pair,), _ = recipes.figures(uses, composition)
        assert [use.kept for use in found] == pytest.approx([1, 1])
        assert [use.effective for use in found] == pytest.approx([use.scale for use in found])
        assert pair.whole.cosine == pytest.approx(0, abs=1e-9)
        assert (pair.whole.overlap, pair.whole.opposed, pair.whole.lost) == (0, None, 0)
        assert pair.fights == []


@pytest.mark.parametrize("composition", [Composition(), WHOLE], ids=str)
def test_a_vector_and_its_negative_undo_each_other(recipes: Recipes, composition: Composition) -> None:
    vector = random_vector(1)
    opposite = {name: -tensor for name, tensor in vector.items()}
    uses = [recipes.use(recipes.dense(vector), 0.7), recipes.use(recipes.dense(opposite), 0.7)]
    found, (pair,), strain = recipes.figures(uses, composition)
    assert [use.kept for use in found] == [0, 0] and strain == 0
    assert pair.whole.cosine == pytest.approx(-1)
    assert (pair.whole.overlap, pair.whole.opposed) == (1, 1)
    assert pair.whole.lost == pytest.approx(1)
    assert pair.fights == [0, 1]
    if composition.method == "ties":
        assert [(use.surviving, use.surviving_norm) for use in found] == [(0, 0), (0, 0)]


def test_a_negative_scale_turns_a_conflict_into_agreement(recipes: Recipes) -> None:
    vector = random_vector(1)
    opposite = {name: -tensor for name, tensor in vector.items()}
    uses = [recipes.use(recipes.dense(vector), 0.7), recipes.use(recipes.dense(opposite), -0.7)]
    found, (pair,), strain = recipes.figures(uses, WHOLE)
    assert pair.whole.cosine == pytest.approx(1) and pair.whole.opposed == 0 and pair.whole.lost == 0
    assert [use.kept for use in found] == pytest.approx([2, 2])
    assert strain == pytest.approx(1.4)


def test_the_same_vector_twice_loses_nothing(recipes: Recipes) -> None:
    vector = random_vector(3)
    first, second = recipes.dense(vector), recipes.dense({name: tensor + 0.0 for name, tensor in vector.items()})
    assert first == second  # so it takes two behaviors that use the same one
    uses = [recipes.use(first, 1.0, behavior="aged"), recipes.use(first, 1.0, behavior="brisk")]
    found, (pair,), _ = recipes.figures(uses, Composition(method="ties", density=0.3))
    assert pair.whole.opposed == 0 and pair.whole.lost == 0 and pair.whole.overlap == 1
    assert found[0].surviving_norm == found[1].surviving_norm > 0.5


def test_a_lone_vector_is_kept_whole_and_strains_by_its_scale(recipes: Recipes) -> None:
    found, pairs, strain = recipes.figures([recipes.use(recipes.dense(random_vector(1)), -1.5)])
    assert found[0].kept == pytest.approx(1) and pairs == [] and strain == pytest.approx(1.5)


def test_nothing_in_use(recipes: Recipes) -> None:
    assert recipes.figures([]) == ([], [], 0)


def test_layers_tell_where_two_fight(recipes: Recipes) -> None:
    first = random_vector(1)
    second = random_vector(2)
    second["model.layers.1.w.weight"] = -first["model.layers.1.w.weight"]
    uses = [recipes.use(recipes.dense(first), 1), recipes.use(recipes.dense(second), 1)]
    pair = recipes.figures(uses)[1][0]
    cosine = pair.layers[1].cosine
    assert cosine == pytest.approx(-1) and 1 in pair.fights
    only = [uses[0], uses[1].model_copy(update={"layers": LayerRange(first=0, last=0)})]
    pair = recipes.figures(only)[1][0]
    assert pair.layers[1].cosine is None and 1 not in pair.fights


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scales=st.lists(st.sampled_from([-1.5, -0.3, 0.3, 0.7, 1.0, 1.5]), min_size=2, max_size=3),
    density=st.sampled_from([0.1, 0.3, 0.7, 1.0]),
    normalize=st.sampled_from(["sum", "mean", "weighted"]),
    scope=st.sampled_from(["vector", "tensor"]),
)
def test_against_brute_force(seed: int, scales: list[float], density: float, normalize: str, scope: str) -> None:
    composition = Composition(method="ties", density=density, normalize=normalize, trim_scope=scope)  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        recipes = Recipes(Path(folder), {name: torch.ones(shape) for name, shape in SHAPES.items()})
        vectors = [random_vector(seed + index) for index in range(len(scales))]
        uses = [recipes.use(recipes.dense(vector), scale) for vector, scale in zip(vectors, scales, strict=True)]
        found, pairs, strain = recipes.figures(uses, composition)
        delta = flat({name: recipes.composer(uses, composition).delta(name) for name in NAMES})
    x = [flat(vector) * scale for vector, scale in zip(vectors, scales, strict=True)]
    t = [_trimmed(vector, density, scope) * scale for vector, scale in zip(vectors, scales, strict=True)]
    elected = torch.stack(t).sum(0).sign()
    for use, whole, kept in zip(found, x, t, strict=True):
        survives = (kept.sign() == elected) & (kept != 0)
        assert use.surviving == pytest.approx(float(survives.double().mean()))
        assert use.surviving_norm == pytest.approx(float((whole**2)[survives].sum() / (whole**2).sum()), rel=1e-5)
        assert use.kept == pytest.approx(float(delta @ whole / (whole @ whole)), rel=1e-4, abs=1e-5)
    pair, a, b = pairs[0].whole, t[0], t[1]
    shared = (a != 0) & (b != 0)
    assert pair.overlap == pytest.approx(float(shared.sum() / ((a != 0) | (b != 0)).sum()))
    if shared.any():
        assert pair.opposed == pytest.approx(float((a.sign() != b.sign())[shared].double().mean()))
    lost = 1 - float((a + b).abs().sum() / (a.abs().sum() + b.abs().sum()))
    assert pair.lost == pytest.approx(lost, abs=1e-5)
    assert strain == pytest.approx(float(delta.norm() / max(flat(vector).norm() for vector in vectors)), rel=1e-4)


def _trimmed(vector: dict[str, torch.Tensor], density: float, scope: str) -> torch.Tensor:
    """The largest magnitudes by sorting, float64, flat."""
    groups = [vector] if scope == "vector" else [{name: vector[name]} for name in sorted(vector)]
    kept = []
    for part in map(flat, groups):
        limit = part.abs().sort(descending=True).values[max(1, int(density * len(part))) - 1]
        kept.append(torch.where(part.abs() >= limit, part, 0.0))
    return torch.cat(kept)


def test_uses_at_scale_zero_have_no_part(recipes: Recipes) -> None:
    uses = [recipes.use(recipes.dense(random_vector(1)), 0.0), recipes.use(recipes.dense(random_vector(2)), 1.0)]
    found, pairs, _ = recipes.figures(uses)
    assert [use.label for use in found] == ["brisk@1"] and pairs == []


def test_a_use_has_its_own_density(recipes: Recipes) -> None:
    vector = recipes.dense(random_vector(1))
    use: Use = recipes.use(vector, 1.0, density=0.5)
    found, _, _ = recipes.figures([use], Composition(method="ties", density=0.1))
    assert found[0].surviving == pytest.approx(0.5, abs=0.01)
