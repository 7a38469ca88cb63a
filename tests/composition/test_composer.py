from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.composition import engine as engine_module
from personality.composition.composer import Composer
from personality.manifests.errors import IncompatibleError, PersonaError
from personality.manifests.personality_record import Composition, LayerRange
from tests.composition.conftest import Workshop, random_tensor, same_bits

Make = Callable[..., Workshop]
# A fixture that makes a new folder at each call may be used in every example.
PROPERTY = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SHAPES = {
    "model.embed_tokens.weight": (11, 8),
    "model.layers.0.proj.weight": (8, 13),
    "model.layers.0.proj.bias": (8,),
    "model.layers.0.conv.weight": (4, 1, 3),
    "model.layers.1.proj.weight": (8, 13),
    "model.layers.1.proj.bias": (8,),
    "model.norm.weight": (8,),
}


def make_base(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    base = {name: random_tensor(shape, seed + index, dtype=dtype) for index, (name, shape) in enumerate(SHAPES.items())}
    for tensor in base.values():  # zeros of both signs, whose bits must stay
        tensor.reshape(-1)[0] = -0.0
        tensor.reshape(-1)[1] = 0.0
    return base


def make_vector(seed: int, dtype: torch.dtype = torch.float32, size: float = 0.1) -> dict[str, Tensor]:
    return {
        name: random_tensor(shape, 1000 * seed + index, size=size, dtype=dtype)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def all_tensors(composer: Composer) -> dict[str, Tensor]:
    return {name: composer.tensor(name).clone() for name in composer.base.specs}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


COMPOSITIONS = [
    Composition(),
    Composition(method="ties", density=0.4),
    Composition(method="ties", density=0.4, normalize="mean", trim_scope="tensor"),
    Composition(method="ties", density=0.4, normalize="weighted").model_copy(update={"lam": 0.7}),
]


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=str)
def test_the_order_of_uses_changes_no_bit(workshop: Make, composition: Composition) -> None:
    """Whatever the behaviors are called, and so in whatever order the uses stand, sums run by vector id."""
    shop = workshop(make_base())
    ids = [shop.dense(make_vector(seed)) for seed in range(1, 4)]
    scales = dict(zip(ids, (0.7, -1.1, 0.35), strict=True))
    results = []
    for order in itertools.permutations(ids):
        uses = [shop.use(vector, scales[vector], behavior=f"b{place}") for place, vector in enumerate(order)]
        results.append(all_tensors(shop.composer(uses, composition)))
    assert all(same(results[0], other) for other in results[1:])
    assert not same(results[0], make_base())


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_scale_zero_and_removal_are_the_base(workshop: Make, composition: Composition, dtype: torch.dtype) -> None:
    base = make_base(dtype)
    shop = workshop(base)
    first, second = shop.dense(make_vector(1)), shop.dense(make_vector(2))
    zero = shop.composer([shop.use(first, 0.0), shop.use(second, -0.0)], composition)
    assert zero.touched == []
    assert same(all_tensors(zero), base)
    assert same(all_tensors(shop.composer([], composition)), base)
    alone = all_tensors(shop.composer([shop.use(first, 0.5)], composition))
    with_zero = all_tensors(shop.composer([shop.use(first, 0.5), shop.use(second, 0.0)], composition))
    assert same(alone, with_zero)


def test_zeros_of_a_vector_keep_negative_zeros_of_the_base(workshop: Make) -> None:
    base = make_base()
    shop = workshop(base)
    vector = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    vector["model.norm.weight"][5] = 0.25
    found = all_tensors(shop.composer([shop.use(shop.dense(vector), 1.0)]))
    changed = base["model.norm.weight"].clone()
    changed[5] = (changed[5].float() + 0.25).bfloat16()
    assert same(found, {**base, "model.norm.weight": changed})
    assert math.copysign(1.0, found["model.norm.weight"][0].item()) == -1.0


@PROPERTY
@given(scale=st.floats(-3, 3).filter(lambda scale: abs(scale) > 1e-6), seed=st.integers(1, 500))
@pytest.mark.parametrize("normalize", ["sum", "mean"])
def test_ties_with_one_vector_at_density_one_is_linear(workshop: Make, normalize: str, scale: float, seed: int) -> None:
    shop = workshop(make_base())
    use = shop.use(shop.dense(make_vector(seed)), scale)
    linear = all_tensors(shop.composer([use]))
    ties = Composition.model_validate({"method": "ties", "density": 1.0, "normalize": normalize})
    assert same(linear, all_tensors(shop.composer([use], ties)))


@PROPERTY
@given(
    scale=st.floats(-3, 3).filter(lambda scale: abs(scale) > 1e-6),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_linear_within_one_rounding_of_float64(workshop: Make, scale: float, dtype: torch.dtype) -> None:
    base, vector = make_base(dtype), make_vector(3)
    shop = workshop(base)
    found = all_tensors(shop.composer([shop.use(shop.dense(vector), scale)]))
    for name, tensor in found.items():
        change = scale * vector[name].double()
        exact = base[name].double() + change
        bound = exact.abs() * torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps * (
            base[name].double().abs() + change.abs()
        )
        bound = bound + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert bool(((tensor.double() - exact).abs() <= bound).all())


def ties_in_numpy(
    base: dict[str, Tensor],
    vectors: list[dict[str, Tensor]],
    scales: list[float],
    densities: list[float],
    composition: Composition,
) -> dict[str, np.ndarray]:
    """TIES over whole, flattened vectors in float64, by sorting; written from the papers' formulas."""
    trimmed = []
    for vector, density in zip(vectors, densities, strict=True):
        flat = {name: tensor.double().numpy() for name, tensor in vector.items()}
        scopes = [list(flat)] if composition.trim_scope == "vector" else [[name] for name in flat]
        for names in scopes:
            magnitudes = np.sort(np.concatenate([np.abs(flat[name]).ravel() for name in names]))[::-1]
            limit = magnitudes[max(1, int(density * len(magnitudes))) - 1]
            for name in names:
                flat[name] = np.where(np.abs(flat[name]) >= limit, flat[name], 0.0)
        trimmed.append(flat)
    found = {}
    for name, tensor in base.items():
        x = np.stack([scale * flat[name] for scale, flat in zip(scales, trimmed, strict=True)])
        agree = (np.sign(x) == np.sign(x.sum(0))) & (x != 0)
        weights = np.abs(np.array(scales)).reshape(-1, *[1] * tensor.dim())
        n = {"sum": np.ones(tensor.shape), "mean": agree.sum(0), "weighted": (agree * weights).sum(0)}
        found[name] = composition.lam * (x * agree).sum(0) / np.maximum(n[composition.normalize], 1e-300)
    return found


@pytest.mark.parametrize("normalize", ["sum", "mean", "weighted"])
@pytest.mark.parametrize("trim_scope", ["vector", "tensor"])
@pytest.mark.parametrize(("lam", "own_density"), [(1.0, None), (0.6, 0.75)])
def test_ties_against_numpy(
    workshop: Make, normalize: str, trim_scope: str, lam: float, own_density: float | None
) -> None:
    base = make_base(torch.float32)
    vectors = [make_vector(seed) for seed in range(1, 4)]
    scales = [0.8, -0.6, 1.2]
    shop = workshop(base)
    composition = Composition.model_validate(
        {"method": "ties", "density": 0.3, "normalize": normalize, "trim_scope": trim_scope, "lambda": lam}
    )
    uses = [
        shop.use(shop.dense(vector), scale, density=own_density if scale < 0 else None)
        for vector, scale in zip(vectors, scales, strict=True)
    ]
    densities = [own_density if own_density and scale < 0 else 0.3 for scale in scales]
    composer = shop.composer(uses, composition)
    wanted = ties_in_numpy(base, vectors, scales, densities, composition)
    for name, tensor in base.items():
        torch.testing.assert_close(composer.delta(name).double(), torch.from_numpy(wanted[name]), rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(
            composer.tensor(name).double(), tensor.double() + torch.from_numpy(wanted[name]), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("trim_scope", ["vector", "tensor"])
def test_trimming_keeps_at_least_one_element(workshop: Make, trim_scope: str) -> None:
    shop = workshop(make_base())
    composition = Composition.model_validate({"method": "ties", "density": 1e-9, "trim_scope": trim_scope})
    composer = shop.composer([shop.use(shop.dense(make_vector(1)), 1.0)], composition)
    kept = sum(int((composer.delta(name) != 0).sum()) for name in composer.touched)
    assert kept == (1 if trim_scope == "vector" else len(SHAPES))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=str)
def test_block_size_and_threads_change_no_bit(
    workshop: Make, composition: Composition, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    """Dense and low-rank; tensors large enough that torch would spread them over threads."""
    shapes = {
        "model.layers.0.a.weight": (260, 151),
        "model.layers.1.b.weight": (90, 413),
        "model.norm.weight": (40_001,),
    }
    base = {name: random_tensor(shape, 1, dtype=torch.bfloat16) for name, shape in shapes.items()}
    shop = workshop(base)
    dense = [{name: random_tensor(shape, seed, size=0.05) for name, shape in shapes.items()} for seed in (2, 3)]
    factors = {
        name: (random_tensor((9, shape[1]), 5, 0.1), random_tensor((shape[0], 9), 6, 0.1), 2.0)
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    ids = [shop.dense(dense[0]), shop.dense(dense[1]), shop.low_rank(factors)]
    uses = [shop.use(vector, scale) for vector, scale in zip(ids, (0.8, -0.6, 1.1), strict=True)]
    results = []
    for count, block in ((1, 1 << 20), (3, 1 << 20), (1, 900), (1, 3001), (2, 20_000)):
        torch.set_num_threads(count)
        monkeypatch.setattr(engine_module, "BLOCK_ELEMENTS", block)
        results.append(all_tensors(shop.composer(uses, composition)))
    assert all(same(results[0], other) for other in results[1:])


def test_layers_restrict_what_changes(workshop: Make) -> None:
    base = make_base()
    shop = workshop(base)
    vector = shop.dense(make_vector(1))
    composer = shop.composer([shop.use(vector, 1.0, layers=LayerRange(first=1, last=1))])
    assert composer.touched == ["model.layers.1.proj.bias", "model.layers.1.proj.weight"]
    found, whole = all_tensors(composer), all_tensors(shop.composer([shop.use(vector, 1.0)]))
    for name in SHAPES:
        assert same_bits(found[name], (whole if name in composer.touched else base)[name])


def test_trimming_sees_only_the_layers_of_the_use(workshop: Make) -> None:
    base, vector = make_base(torch.float32), make_vector(1)
    vector["model.embed_tokens.weight"] *= 1000  # would take every place under one threshold
    shop = workshop(base)
    composition = Composition(method="ties", density=0.5)
    layers = LayerRange(first=0, last=0)
    composer = shop.composer([shop.use(shop.dense(vector), 1.0, layers=layers)], composition)
    elements = sum(math.prod(SHAPES[name]) for name in composer.touched)
    kept = sum(int((composer.delta(name) != 0).sum()) for name in composer.touched)
    assert kept == int(0.5 * elements)


def test_a_layer_that_is_not_there_is_refused(workshop: Make) -> None:
    shop = workshop(make_base())
    vector = shop.dense(make_vector(1))
    with pytest.raises(IncompatibleError, match=r"`aged@1` is to act in layers 1-7, the base has layers 0-1") as caught:
        shop.composer([shop.use(vector, 1.0, layers=LayerRange(first=1, last=7))])
    assert "0-1" in caught.value.hint
    only_embeddings = shop.dense({"model.embed_tokens.weight": torch.ones(11, 8)})
    with pytest.raises(IncompatibleError, match="`brisk@1` changes nothing in layers 0-1"):
        shop.composer([shop.use(only_embeddings, 1.0, layers=LayerRange(first=0, last=1))])


def test_a_tensor_that_the_base_lacks_is_refused(workshop: Make) -> None:
    shop = workshop(make_base())
    vector = shop.dense({"model.layers.9.proj.weight": torch.ones(8, 13)})
    with pytest.raises(
        IncompatibleError, match=r"`aged@1` changes 1 tensor \(`model.layers.9.proj.weight`\)"
    ) as caught:
        shop.composer([shop.use(vector, 1.0)])
    assert "persona show aged@1" in caught.value.hint


def test_another_shape_is_refused(workshop: Make) -> None:
    shop = workshop(make_base())
    vector = shop.dense({"model.norm.weight": torch.ones(9)})
    with pytest.raises(IncompatibleError, match=r"changes `model.norm.weight` as \[9\], the base has BF16 \[8\]"):
        shop.composer([shop.use(vector, 1.0)])


def test_an_integer_tensor_is_refused_and_otherwise_copied(workshop: Make) -> None:
    base = {**make_base(), "model.layers.0.table": torch.arange(6)}
    shop = workshop(base)
    vector = shop.dense({"model.layers.0.table": torch.ones(6)})
    with pytest.raises(IncompatibleError, match=r"the base has I64 \[6\]"):
        shop.composer([shop.use(vector, 1.0)])
    fine = shop.composer([shop.use(shop.dense(make_vector(1)), 1.0)])
    assert same_bits(fine.tensor("model.layers.0.table"), base["model.layers.0.table"])


def test_overflow_is_refused(workshop: Make) -> None:
    base = {"w": torch.full((4,), 6e4, dtype=torch.float16)}
    shop = workshop(base)
    use = shop.use(shop.dense({"w": torch.full((4,), 1e4)}), 1.0)
    with pytest.raises(PersonaError, match="composing `w` gives NaN or infinite values in F16") as caught:
        shop.composer([use]).tensor("w")
    assert "scales are too large" in caught.value.hint


def test_float64_is_composed_in_float64(workshop: Make) -> None:
    base = {"w": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    tau = {"w": torch.tensor([1e-9, -1e-9, 1e-10])}
    shop = workshop(base)
    found = shop.composer([shop.use(shop.dense(tau), 0.3)]).tensor("w")
    assert same_bits(found, base["w"] + tau["w"].double() * 0.3)
    assert not torch.equal(found, base["w"])


def test_empty_and_scalar_tensors(workshop: Make) -> None:
    base = {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4), "w": torch.ones(2, 2)}
    shop = workshop(base)
    tau = {"scalar": torch.tensor(0.5), "empty": torch.zeros(0, 4)}
    for composition in COMPOSITIONS:
        found = all_tensors(shop.composer([shop.use(shop.dense(tau), 2.0)], composition))
        assert found["empty"].shape == (0, 4)
        assert found["scalar"].shape == ()
        assert same_bits(found["w"], base["w"])
    assert shop.composer([shop.use(shop.dense(tau), 2.0)]).tensor("scalar").item() == 3.0
