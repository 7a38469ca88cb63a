"""What holds of every method: bits that depend on the recipe alone, the base without vectors, no tensor lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from personality.composition.composer import Composer
from personality.composition.methods import whole_tensor
from personality.composition.methods.operand import Operand
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.composition_methods import METHODS, NATIVE
from personality.manifests.errors import FallenApartError, IncompatibleError
from personality.manifests.personality_record import Composition, LayerRange, Personality, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector
from tests.composition.conftest import NAMES, Workshop, random_tensor, same_bits
from tests.composition.test_mergekit import make_family

OTHERS = [name for name in METHODS if name not in NATIVE]
EVERY = pytest.mark.parametrize("method", OTHERS)
SCALES = (0.8, -0.5, 1.2)
MATRIX, BIAS = "layers.0.mlp.weight", "layers.0.mlp.bias"


def vectors_for(method: str) -> int:
    """As many as the method composes in one tensor, three at most."""
    return min(METHODS[method].most or 3, 3)


@pytest.fixture
def scene(workshop: Callable[..., Workshop]) -> tuple[Workshop, list[str]]:
    """A small base of every kind of tensor and three vectors that change all of it."""
    shapes = {
        MATRIX: (24, 20),
        BIAS: (24,),
        "layers.0.experts": (3, 12, 10),
        "layers.0.conv": (16, 1, 4),
        "layers.0.gate": (1, 20),
        "layers.0.scalar": (1,),
        "layers.0.patch": (6, 3, 2, 2),
        "layers.1.mlp.weight": (24, 20),
        "layers.1.empty": (0, 4),
    }
    made = workshop(
        {name: random_tensor(shape, seed=i, dtype=torch.bfloat16) for i, (name, shape) in enumerate(shapes.items())}
    )
    vectors = [
        made.dense({name: random_tensor(shape, 100 * n + i, 0.01) for i, (name, shape) in enumerate(shapes.items())})
        for n in (1, 2, 3)
    ]
    return made, vectors


def composed(made: Workshop, composition: Composition, uses: Sequence[Use]) -> dict[str, Tensor]:
    composer = made.composer(uses, composition)
    return {name: composer.tensor(name) for name in composer.specs}


@EVERY
def test_every_tensor_is_composed_and_finite(scene: tuple[Workshop, list[str]], method: str) -> None:
    made, vectors = scene
    uses = [made.use(vector, scale) for vector, scale in zip(vectors[: vectors_for(method)], SCALES, strict=False)]
    composer = made.composer(uses, Composition(method=method))
    assert composer.touched == list(composer.specs)
    for name, spec in composer.specs.items():
        delta = composer.delta(name)
        assert delta.shape == spec.shape
        assert delta.dtype == torch.float32
        assert composer.tensor(name).shape == spec.shape
        if spec.elements:
            assert bool(torch.isfinite(delta).all())
            # A share of one element may be none of it where a method draws at random.
            assert bool(delta.any()) or (method.startswith("dare") and spec.elements == 1), name


@EVERY
def test_scale_zero_and_removal_are_the_base(scene: tuple[Workshop, list[str]], method: str) -> None:
    made, vectors = scene
    composition = Composition(method=method)
    for uses in ([], [made.use(vector, 0.0) for vector in vectors]):
        for name, tensor in composed(made, composition, uses).items():
            assert same_bits(tensor, made.base.tensor(name))
    one = [made.use(vectors[0], 0.7)]
    assert all(
        same_bits(tensor, other)
        for tensor, other in zip(
            composed(made, composition, one).values(),
            composed(made, composition, [*one, made.use(vectors[1], 0.0)]).values(),
            strict=True,
        )
    )


@EVERY
def test_order_threads_and_other_draws_change_no_bit(scene: tuple[Workshop, list[str]], method: str) -> None:
    """Behaviors' names order the uses of a recipe; vectors' ids order the sums, whatever the behaviors are called."""
    made, vectors = scene
    count = vectors_for(method)
    composition = Composition(method=method, seed=7 if METHODS[method].random else 0)
    scaled = list(zip(vectors[:count], SCALES, strict=False))
    results = []
    threads = torch.get_num_threads()
    before = torch.random.get_rng_state()
    try:
        for index, order in enumerate(itertools.permutations(range(count))):
            torch.manual_seed(index)
            torch.set_num_threads(1 + index % 2)
            uses = [made.use(*scaled[place], behavior=NAMES[at]) for at, place in enumerate(order)]
            composer = made.composer(uses, composition)
            names = list(composer.specs) if index % 2 else list(composer.specs)[::-1]
            state = torch.random.get_rng_state()
            found = {name: composer.tensor(name) for name in names}
            assert torch.equal(torch.random.get_rng_state(), state)
            assert torch.get_num_threads() == 1 + index % 2
            results.append(found)
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(before)
    for found in results[1:]:
        assert all(same_bits(tensor, results[0][name]) for name, tensor in found.items())


@EVERY
def test_large_tensors_are_the_same_on_any_number_of_threads(method: str) -> None:
    """Large enough for torch to share a sum among threads: without a thread of its own, DARE's bits depended on it."""
    shape = (48, 160) if method in ("tsv_merge", "iso_c") else (400, 512)
    base = random_tensor(shape, 9, 0.02, torch.bfloat16)
    operands = [Operand(letter * 64, random_tensor(shape, i, 0.001), 0.5) for i, letter in enumerate("abc")]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found = whole_tensor.delta(Composition(method=method), "w", base, operands[: vectors_for(method)])
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    assert same_bits(*results)


@pytest.mark.parametrize("method", ["dare_ties", "della", "model_stock", "arcee_fusion", "tsv_merge"])
def test_several_tensors_at_the_same_time(scene: tuple[Workshop, list[str]], method: str) -> None:
    made, vectors = scene
    uses = [made.use(vector, scale) for vector, scale in zip(vectors[: vectors_for(method)], SCALES, strict=False)]
    composer = made.composer(uses, Composition(method=method))
    names = list(composer.specs) * 5
    alone = {name: composer.tensor(name) for name in composer.specs}
    threads = torch.get_num_threads()
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(composer.tensor, names))
    assert all(same_bits(tensor, alone[name]) for name, tensor in zip(names, found, strict=True))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", [name for name in OTHERS if METHODS[name].random and METHODS[name].most is None])
def test_a_mask_is_of_seed_tensor_and_vector(method: str) -> None:
    """Another vector beside it, or another tensor before it, does not change what is dropped of a vector."""
    base = torch.zeros(64, 64)
    first, second = (Operand(letter * 64, random_tensor((64, 64), seed), 1.0) for seed, letter in ((1, "a"), (2, "b")))
    linear = method.replace("_ties", "_linear") if "_" in method else f"{method}_linear"

    def masks(seed: int, name: str, operands: list[Operand]) -> Tensor:
        return whole_tensor.delta(Composition(method=linear, seed=seed), name, base, operands) != 0

    alone = masks(0, "w", [first])
    # The zero of a dropped element stays one under the other's: where both are dropped, the sum is 0.
    assert torch.equal(masks(0, "w", [first, second]), alone | masks(0, "w", [second]))
    for other in (masks(1, "w", [first]), masks(0, "v", [first]), masks(0, "w", [second])):
        assert 0.3 < float((alone == other).float().mean()) < 0.7
    assert 0.4 < float(alone.float().mean()) < 0.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@EVERY
def test_other_dtypes(method: str, dtype: torch.dtype) -> None:
    """Δ is in the compute dtype, float64 for a float64 base; a float16 base only rounds it."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    base = random_tensor((24, 20), 9, 0.5, dtype)
    taus = [random_tensor((24, 20), i, 0.02) for i in range(3)][: vectors_for(method)]
    found, single = (
        whole_tensor.delta(
            Composition(method=method),
            "w",
            base,
            [Operand(letter * 64, tau.to(own), 0.5) for letter, tau in zip("abc", taus, strict=False)],
        )
        for own in (compute, torch.float32)
    )
    assert found.dtype == compute
    torch.testing.assert_close(found.float(), single, rtol=1e-4, atol=1e-6)


LONE = {"sce", "model_stock", "nuslerp", "multislerp", "tsv_merge"}


@pytest.mark.parametrize("method", sorted(LONE))
def test_a_vector_alone_in_a_tensor_acts_at_its_scale(method: str) -> None:
    base, tau = random_tensor((8, 6), 1), random_tensor((8, 6), 2)
    zero = Operand("b" * 64, torch.zeros(8, 6), 1.0)
    found = whole_tensor.delta(Composition(method=method), "w", base, [Operand("a" * 64, tau, -0.7), zero])
    assert torch.equal(found, tau * -0.7)


@EVERY
def test_vectors_of_zeros_change_nothing(method: str) -> None:
    operands = [Operand(letter * 64, torch.zeros(4, 3), 1.0) for letter in "abc"]
    assert torch.equal(
        whole_tensor.delta(Composition(method=method), "w", torch.ones(4, 3), operands), torch.zeros(4, 3)
    )


SINGLE: dict[str, dict[str, Any]] = {
    "dare_linear": {"density": 1},
    "dare_ties": {"density": 1},
    "della": {"density": 1},
    "della_linear": {"density": 1},
    "breadcrumbs": {"density": 1},
    "breadcrumbs_ties": {"density": 1},
    "ram": {"epsilon": 0},
    "ramplus_tl": {"epsilon": 0},
    "nearswap": {"t": 1e3},
}


@pytest.mark.parametrize("scale", [0.8, -1.5])
@pytest.mark.parametrize("method", sorted(SINGLE))
def test_a_scale_is_what_was_typed(method: str, scale: float) -> None:
    """One vector, nothing dropped: `linear`."""
    tau = random_tensor((8, 6), 2)
    composition = Composition(method=method, parameters=SINGLE[method])
    found = whole_tensor.delta(composition, "w", random_tensor((8, 6), 1), [Operand("a" * 64, tau, scale)])
    assert torch.equal(found, tau * scale)


@pytest.mark.parametrize("method", [name for name in OTHERS if METHODS[name].most])
def test_more_vectors_than_a_method_composes_are_refused(scene: tuple[Workshop, list[str]], method: str) -> None:
    made, vectors = scene
    most = METHODS[method].most
    assert most is not None
    many = [made.use(vector, 1.0) for vector in vectors[: most + 1]]
    with pytest.raises(IncompatibleError, match=f"`{method}` composes {most} vector") as caught:
        made.composer(many, Composition(method=method))
    assert "--layers" in caught.value.hint
    apart = [
        made.use(vector, 1.0, layers=LayerRange(first=layer, last=layer)) for layer, vector in enumerate(vectors[:2])
    ]
    composer = made.composer(apart, Composition(method=method))
    assert len(composer.touched) == len(composer.specs)


def test_the_density_of_a_use_counts_and_must_fit(scene: tuple[Workshop, list[str]]) -> None:
    made, vectors = scene
    composer = made.composer([made.use(vectors[0], 1.0, density=0.1)], Composition(method="dare_linear"))
    assert 0.05 < float((composer.delta(MATRIX) != 0).float().mean()) < 0.15
    with pytest.raises(IncompatibleError, match=r"density 0.1 ± epsilon 0.15"):
        made.composer([made.use(vectors[0], 1.0, density=0.1)], Composition(method="della"))


@pytest.mark.parametrize("method", [name for name in OTHERS if name not in ("slerp", "nearswap")])
def test_overflow_is_refused(workshop: Callable[..., Workshop], method: str) -> None:
    """`slerp` turns on a sphere and `nearswap` has its t: both stay finite whatever the scale."""
    made = workshop({MATRIX: random_tensor((24, 20), 1, dtype=torch.bfloat16)})
    uses = [
        made.use(made.dense({MATRIX: random_tensor((24, 20), seed, 100.0)}), 3e38)
        for seed in range(2, 2 + vectors_for(method))
    ]
    composer = made.composer(uses, Composition(method=method))
    with pytest.raises((FallenApartError, IncompatibleError)):
        composer.tensor(MATRIX)


def test_impossible_vectors_are_refused_by_name() -> None:
    tau = random_tensor((4, 4), 1)
    taus = [tau, -tau, torch.eye(4) * 1e-30]  # the last is too short to have a direction
    operands = [Operand(letter * 64, item, 1.0) for letter, item in zip("abc", taus, strict=True)]
    with pytest.raises(IncompatibleError, match=r"`multislerp` cannot compose `w`"):
        whole_tensor.delta(Composition(method="multislerp"), "w", tau, operands)


@EVERY
def test_nothing_reaches_the_terminal(
    method: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    operands = [Operand(letter * 64, random_tensor((6, 4), i), 0.5) for i, letter in enumerate("abc")]
    whole_tensor.delta(Composition(method=method), "w", random_tensor((6, 4), 9), operands[: vectors_for(method)])
    out, err = capfd.readouterr()
    assert (out, err, caplog.text) == ("", "", "")


@pytest.mark.parametrize("kind", ["llama-bias", "qwen3_moe", "qwen3_5"])
def test_no_tensor_of_a_model_is_lost(tmp_path: Path, kind: str) -> None:
    """Biases (mergekit itself writes 30 of the 51 tensors of that Llama), routers, experts, depthwise convolutions."""
    family = make_family(tmp_path, kind, torch.bfloat16)
    repository, base = Repository(tmp_path / "repository"), Checkpoint(family.base)
    opened = {vector: open_task_vector(repository, vector, "vector") for vector in family.vectors}
    for method in OTHERS:
        uses = tuple(
            Use(behavior=name, number=1, vector=vector, scale=scale)
            for name, vector, scale in zip(NAMES, family.vectors[: vectors_for(method)], (0.4, 0.3, 0.2), strict=False)
        )
        personality = Personality(
            base=BaseIdentity(source="base", fingerprint="0" * 64), composition=Composition(method=method), uses=uses
        )
        composer = Composer(base, personality, opened)
        assert composer.touched == list(base.specs)
        for name, spec in base.specs.items():
            assert composer.tensor(name).shape == spec.shape
            # Arcee Fusion keeps outliers only, which a bias of 16 elements need not have.
            assert bool(composer.delta(name).any()) or method == "arcee_fusion", (method, name)
