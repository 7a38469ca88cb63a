"""What holds of every composition, whatever the numbers: a recipe decides the bits, and nothing else does."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from personality.builds.writer import write_checkpoint
from personality.composition import engine as engine_module
from personality.composition.compiled import Block, Signature, uncompiled
from personality.composition.composer import Composer
from personality.composition.engine import Engine
from personality.manifests.errors import FallenApartError
from personality.manifests.personality_record import Composition, Use
from tests.composition.conftest import Workshop, same_bits

PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BASES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
DELTAS = [torch.bfloat16, torch.float16, torch.float32]
SHAPES: list[tuple[int, ...]] = [(), (1,), (0,), (7,), (0, 4), (4, 0), (5, 6), (1, 9), (2, 3, 4), (3, 70)]
SCALES = st.one_of(st.floats(-4, 4), st.sampled_from([1.0, -1.0, 1e-30, -1e-8, 1e-4])).filter(lambda scale: scale != 0)
# Of each: many that differ in size, zeros of both signs, the smallest subnormal numbers, and large ones that overflow
# no sum of a few of them.


def fill(shape: tuple[int, ...], dtype: torch.dtype, seed: int, largest: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps
    number = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = torch.randint(0, 8, shape, generator=generator)
    factors = torch.tensor([1.0, 0.1, 1e-3, smallest, 30 * smallest, 0.0, -0.0, largest], dtype=torch.float64)
    return (number * factors[kind]).clamp(-limits.max, limits.max).to(dtype)


def huge(dtype: torch.dtype) -> float:
    """Large, and far enough from overflow for a few scaled ones to be added."""
    return {torch.float16: 200.0, torch.float64: 1e30}.get(dtype, 1e30)


@st.composite
def compositions(draw: st.DrawFn, ties: bool | None = None) -> Composition:
    if not (draw(st.booleans()) if ties is None else ties):
        return Composition()
    return Composition.model_validate(
        {
            "method": "ties",
            "density": draw(st.sampled_from([0.01, 0.2, 0.5, 1.0])),
            "normalize": draw(st.sampled_from(["sum", "mean", "weighted"])),
            "trim_scope": draw(st.sampled_from(["vector", "tensor"])),
            "lambda": draw(st.sampled_from([1.0, 0.37, -1.5])),
        }
    )


class Scene:
    """A base of every shape and dtype, and vectors on parts of it: dense of one dtype, of mixed ones, low-rank.

    Args:
        make: makes a workshop.
        seed: another one gives other numbers, shapes in other dtypes and other parts.
        count: how many vectors.
    """

    def __init__(self, make: Callable[..., Workshop], seed: int, count: int) -> None:
        dtypes = itertools.cycle(BASES[seed % 4 :] + BASES[: seed % 4])
        self.base = {
            f"model.layers.{i % 2}.t{i}": fill(shape, dtype, seed + i, huge(dtype))
            for i, (shape, dtype) in enumerate(zip(SHAPES, dtypes, strict=False))
        }
        self.shop = make(self.base)
        self.vectors: list[str] = []
        kinds = ["mixed", "low-rank", "whole", "mixed", "whole"]
        for number in range(count):
            kind = kinds[(seed + number) % len(kinds)]
            self.vectors.append(self._vector(kind, 1000 * (seed + 1) + 100 * number))

    def _vector(self, kind: str, seed: int) -> str:
        if kind == "low-rank":
            factors = {
                name: (
                    fill((3, tensor.shape[1]), torch.bfloat16, seed, 2.0),
                    fill((tensor.shape[0], 3), torch.float32, seed + 1, 2.0),
                    0.75,
                )
                for name, tensor in self.base.items()
                if tensor.dim() == 2
            }
            return self.shop.low_rank(factors)
        names = [name for i, name in enumerate(self.base) if kind == "whole" or (seed // 100 + i) % 3]
        dtypes = itertools.cycle(DELTAS if kind == "mixed" else DELTAS[seed % 3 : seed % 3 + 1])
        tensors = {}
        for i, (name, dtype) in enumerate(zip(names, dtypes, strict=False)):
            size = 1.0 if self.base[name].dtype == torch.float16 else huge(dtype)
            tensors[name] = fill(tuple(self.base[name].shape), dtype, seed + i, size)
        return self.shop.dense(tensors)

    def uses(self, scales: Sequence[float]) -> list[Use]:
        return [self.shop.use(vector, scale) for vector, scale in zip(self.vectors, scales, strict=True)]

    def compose(
        self, scales: Sequence[float], composition: Composition, *, engine: Engine | None = None
    ) -> dict[str, Tensor]:
        composer = self.shop.composer(self.uses(scales), composition)
        composer.engine = engine or Engine(threads=1, compiling=False)
        return every(composer)


def every(composer: Composer) -> dict[str, Tensor]:
    return {name: composer.tensor(name).clone() for name in composer.base.specs}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


@PROPERTY
@given(
    seed=st.integers(0, 400),
    scales=st.lists(SCALES, min_size=3, max_size=3),
    composition=compositions(),
    order=st.permutations(range(3)),
)
def test_permuting_vectors_changes_no_bit(
    workshop: Callable[..., Workshop], seed: int, scales: list[float], composition: Composition, order: list[int]
) -> None:
    scene = Scene(workshop, seed, 3)
    wanted = scene.compose(scales, composition)
    uses = [scene.shop.use(scene.vectors[i], scales[i], behavior=f"b{place}") for place, i in enumerate(order)]
    assert same(every(scene.shop.composer(uses, composition)), wanted)
    assert wanted.keys() == scene.base.keys()


@PROPERTY
@given(seed=st.integers(0, 400), composition=compositions(), scale=SCALES)
def test_scale_zero_and_removal_are_the_base(
    workshop: Callable[..., Workshop], seed: int, composition: Composition, scale: float
) -> None:
    scene = Scene(workshop, seed, 2)
    assert same(scene.compose([0.0, -0.0], composition), scene.base)
    assert same(every(scene.shop.composer([], composition)), scene.base)
    without = every(scene.shop.composer([scene.shop.use(scene.vectors[1], scale)], composition))
    assert same(scene.compose([0.0, scale], composition), without)


@PROPERTY
@given(
    seed=st.integers(0, 400),
    scale=SCALES,
    normalize=st.sampled_from(["sum", "mean"]),
    trim_scope=st.sampled_from(["vector", "tensor"]),
)
def test_ties_of_one_untrimmed_vector_is_linear(
    workshop: Callable[..., Workshop], seed: int, scale: float, normalize: str, trim_scope: str
) -> None:
    scene = Scene(workshop, seed, 1)
    ties = {"method": "ties", "density": 1.0, "normalize": normalize, "trim_scope": trim_scope}
    assert same(scene.compose([scale], Composition.model_validate(ties)), scene.compose([scale], Composition()))


@PROPERTY
@given(seed=st.integers(0, 400), scale=st.sampled_from([2.0, -0.5, 1.0, -4.0]))
def test_ties_weighted_of_one_vector_is_its_direction(
    workshop: Callable[..., Workshop], seed: int, scale: float
) -> None:
    """`weighted` divides by |s|: what is left of the scale is its sign. Powers of two, so that this is exact, and no
    numbers so small that halving them is not.
    """
    base = {"w": torch.randn(40, generator=torch.Generator().manual_seed(seed))}
    shop = workshop(base)
    vector = shop.dense({"w": torch.randn(40, generator=torch.Generator().manual_seed(seed + 1))})
    weighted = Composition.model_validate({"method": "ties", "density": 1.0, "normalize": "weighted"})
    found = every(shop.composer([shop.use(vector, scale)], weighted))
    assert same(found, every(shop.composer([shop.use(vector, math.copysign(1.0, scale))])))


@PROPERTY
@given(
    seed=st.integers(0, 400),
    scales=st.lists(SCALES, min_size=3, max_size=3),
    composition=compositions(),
    block=st.sampled_from([1, 3, 8, 50, 71, 1 << 18]),
    piece=st.sampled_from([1, 5, 64, 1 << 17]),
    threads=st.integers(1, 3),
    fast=st.booleans(),
)
def test_blocks_threads_and_compiling_change_no_bit(
    workshop: Callable[..., Workshop],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    scales: list[float],
    composition: Composition,
    block: int,
    piece: int,
    threads: int,
    fast: bool,
) -> None:
    """Compiled kernels are stood in for here by the function itself, so that the way to them is taken; their own bits
    are compared in test_compiled.py.
    """
    scene = Scene(workshop, seed, 3)
    wanted = scene.compose(scales, composition)
    asked: list[Signature] = []

    def stand_in(signature: Signature) -> Block | None:
        asked.append(signature)
        return uncompiled(signature) if fast else None

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "BLOCK_ELEMENTS", block)
        patched.setattr(engine_module, "_CACHED_ELEMENTS", piece)
        patched.setattr(engine_module, "compiled", stand_in)
        engine = Engine(threads=threads)
        with engine.running():
            found = scene.compose(scales, composition, engine=engine)
    assert asked
    assert same(found, wanted)


@PROPERTY
@given(seed=st.integers(0, 400), scales=st.lists(SCALES, min_size=2, max_size=2), composition=compositions())
def test_what_is_written_is_what_is_composed(
    workshop: Callable[..., Workshop], tmp_path: Path, seed: int, scales: list[float], composition: Composition
) -> None:
    """Tensors without an element and of one element too, in shards small enough for several."""
    scene = Scene(workshop, seed, 2)
    composer = scene.shop.composer(scene.uses(scales), composition)
    folder = tmp_path / "written"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_checkpoint(composer, folder, shard_bytes=300)
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    assert same({name: found[name] for name in scene.base}, every(composer))


@PROPERTY
@given(
    seed=st.integers(0, 10_000),
    scales=st.lists(st.floats(-4, 4).filter(lambda scale: abs(scale) > 1e-6), min_size=1, max_size=4),
    dtype=st.sampled_from(BASES),
    deltas=st.lists(st.sampled_from(DELTAS), min_size=4, max_size=4),
)
def test_linear_is_linear_within_one_rounding(
    workshop: Callable[..., Workshop],
    seed: int,
    scales: list[float],
    dtype: torch.dtype,
    deltas: list[torch.dtype],
) -> None:
    """Against exact sums: half a unit of the base's dtype, and what the compute dtype loses in n + 1 steps."""
    shape = (11, 13)
    base = {"w": fill(shape, dtype, seed, 3.0)}
    shop = workshop(base)
    vectors = [fill(shape, delta, seed + 1 + i, 3.0) for i, delta in zip(range(len(scales)), deltas, strict=False)]
    uses = [shop.use(shop.dense({"w": vector}), scale) for vector, scale in zip(vectors, scales, strict=True)]
    found = shop.composer(uses).tensor("w")
    inner = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    limits = torch.finfo(dtype)
    for place in range(base["w"].numel()):
        terms = [s * v.reshape(-1)[place].item() for s, v in zip(scales, vectors, strict=True)]
        weight = base["w"].reshape(-1)[place].item()
        exact = math.fsum([weight, *terms])
        lost = inner.eps * (len(scales) + 2) * math.fsum([abs(weight), *(abs(term) for term in terms)])
        lost += (len(scales) + 1) * inner.smallest_normal * inner.eps
        bound = abs(exact) * limits.eps / 2 + lost * (1 + limits.eps) + limits.smallest_normal * limits.eps / 2
        assert abs(found.reshape(-1)[place].item() - exact) <= bound


@PROPERTY
@given(seed=st.integers(0, 400), scale=st.sampled_from([0.25, 0.5, 2.0, -2.0]))
def test_scaling_a_vector_is_scaling_its_use(workshop: Callable[..., Workshop], seed: int, scale: float) -> None:
    """s · τ at scale 1 is τ at scale s; exact for powers of two where nothing is subnormal."""
    base = {"w": fill((60,), torch.bfloat16, seed, 100.0)}
    shop = workshop(base)
    vector = torch.randn(60, generator=torch.Generator().manual_seed(seed))
    one = every(shop.composer([shop.use(shop.dense({"w": vector * scale}), 1.0)]))
    assert same(one, every(shop.composer([shop.use(shop.dense({"w": vector}), scale)])))


@pytest.mark.parametrize("dtype", BASES)
@pytest.mark.parametrize("composition", [Composition(), Composition(method="ties", density=0.5)], ids=str)
def test_overflow_is_refused_wherever_it_is(
    workshop: Callable[..., Workshop], composition: Composition, dtype: torch.dtype
) -> None:
    """One element of many, the last one; and the largest number that there is is none."""
    limits = torch.finfo(dtype)
    base = {"w": torch.zeros(9, 9, dtype=dtype)}
    base["w"][-1, -1] = limits.max
    shop = workshop(base)
    change = torch.zeros(9, 9)
    change[0, 0] = 1.0
    keep = shop.dense({"w": change})
    assert shop.composer([shop.use(keep, 1.0)], composition).tensor("w")[-1, -1].item() == limits.max
    change[-1, -1] = min(limits.max, 3e38)
    scale = 1.0 if dtype != torch.float64 else limits.max / 4e38
    with pytest.raises(FallenApartError, match="composing `w` gives NaN or infinite values"):
        shop.composer([shop.use(shop.dense({"w": change}), scale)], composition).tensor("w")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("composition", [Composition(), Composition(method="ties", density=0.5)], ids=str)
def test_a_vector_that_is_not_finite_gives_no_weights(
    workshop: Callable[..., Workshop], composition: Composition, value: float
) -> None:
    shop = workshop({"w": torch.ones(50)})
    change = torch.linspace(1, 2, 50)
    change[33] = value
    with pytest.raises(FallenApartError):
        shop.composer([shop.use(shop.dense({"w": change}), 0.5)], composition).tensor("w")
