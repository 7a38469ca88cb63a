"""How exact composition is, against a float64 reference of its own and against mergekit 0.1.5's tensor functions.

The reference computes in float64 by sorting, and rounds once, to the nearest number of the base's dtype, ties to even.
What "equal" means:

- **Where float32 arithmetic loses nothing** (few bits, scales of powers of two), every bit is equal: there is one
  rounding and it is the right one.
- **Else** the weights are rounded from a float32 sum whose own error is some 2⁻²³ of the terms. That turns a rounding
  only where the sum lies so close to the middle between two neighbors: at most one unit in the last place of a 16-bit
  base, and at least 99.9% of the elements equal.
- **A float32 base** is rounded at each step: the error is at most (n + 3) · 2⁻²⁴ of the terms' magnitudes. A float64
  base is computed in float64, with the same bound of 2⁻⁵³.

A sum that cancels to less than float32 can tell from zero has no sign to elect; such elements are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from personality.manifests.personality_record import Composition
from tests.composition.conftest import Workshop, random_tensor

Floats = NDArray[np.float64]
PROPERTY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALES = (0.8, -0.55, 1.2, 0.31)
SHAPES = {"model.layers.0.a": (300, 200), "model.layers.1.b": (5, 60, 100), "model.layers.1.c": (8_191,)}
# Bits of the significand, and the exponent of the smallest subnormal number.
FORMATS = {torch.bfloat16: (8, -133), torch.float16: (11, -24), torch.float32: (24, -149), torch.float64: (53, -1074)}


def rounded(values: Floats, dtype: torch.dtype) -> Floats:
    """To the nearest number of a dtype, ties to even; in one step, which torch's own conversion to bfloat16 is not."""
    bits, lowest = FORMATS[dtype]
    if dtype == torch.float64:
        return values
    quantum = np.ldexp(1.0, np.maximum(np.frexp(values)[1] - bits, lowest))
    return np.asarray(np.rint(values / quantum) * quantum)


def unit(values: Floats, dtype: torch.dtype) -> Floats:
    """One unit in the last place at a number."""
    bits, lowest = FORMATS[dtype]
    return np.asarray(np.ldexp(1.0, np.maximum(np.frexp(values)[1] - bits, lowest)))


def float64(tensor: Tensor) -> Floats:
    return tensor.double().numpy().astype(np.float64)


def trimmed(vector: dict[str, Floats], density: float, scope: str) -> dict[str, Floats]:
    """TIES step 1, by sorting."""
    found: dict[str, Floats] = {}
    for names in [list(vector)] if scope == "vector" else [[name] for name in vector]:
        ordered = np.sort(np.concatenate([np.abs(vector[name]).ravel() for name in names]))[::-1]
        limit = ordered[max(1, int(density * len(ordered))) - 1]
        found |= {name: vector[name] * (np.abs(vector[name]) >= limit) for name in names}
    return found


def reference(
    vectors: Sequence[dict[str, Floats]], scales: Sequence[float], composition: Composition
) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
    """Δ of each tensor in float64, from the formulas alone, and where a sign is decided."""
    if composition.method == "ties":
        vectors = [trimmed(vector, composition.density, composition.trim_scope) for vector in vectors]
    found = {}
    for name in vectors[0]:
        x = np.stack([scale * vector[name] for scale, vector in zip(scales, vectors, strict=True)])
        total = x.sum(0)
        if composition.method == "linear":
            found[name] = total, np.ones(total.shape, dtype=np.bool_)
            continue
        agree = (np.sign(x) == np.sign(total)) & (x != 0)
        weight = np.abs(np.array(scales)).reshape(-1, *[1] * total.ndim)
        n = {"sum": np.ones(total.shape), "mean": agree.sum(0), "weighted": (agree * weight).sum(0)}
        delta = composition.lam * (x * agree).sum(0) / np.where(agree.any(0), n[composition.normalize], 1.0)
        found[name] = delta, (np.abs(total) > 2.0**-21 * np.abs(x).sum(0)) | (x == 0).all(0)
    return found


COMPOSITIONS = [
    Composition(),
    *(
        Composition.model_validate(
            {"method": "ties", "density": density, "normalize": normalize, "trim_scope": scope, "lambda": lam}
        )
        for normalize in ("sum", "mean", "weighted")
        for scope, density, lam in (("vector", 0.3, 1.0), ("tensor", 0.7, 0.6))
    ),
]


def compare(
    shop: Workshop, base: dict[str, Tensor], vectors: list[dict[str, Tensor]], composition: Composition
) -> tuple[int, int, int, float]:
    """Elements, those that differ from the reference, those left out, and the largest distance in units."""
    scales = SCALES[: len(vectors)]
    ids = [shop.dense(vector) for vector in vectors]
    composer = shop.composer([shop.use(i, scale) for i, scale in zip(ids, scales, strict=True)], composition)
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    wanted = reference(
        [{name: float64(tensor) for name, tensor in vectors[i].items()} for i in order],
        [scales[i] for i in order],
        composition,
    )
    elements = different = left_out = 0
    furthest = 0.0
    for name, tensor in base.items():
        delta, decided = wanted[name]
        right = rounded(float64(tensor) + delta, tensor.dtype)
        found = float64(composer.tensor(name))
        distance = np.abs(found - right) / np.maximum(unit(right, tensor.dtype), unit(found, tensor.dtype))
        elements += found.size
        different += int((found != right)[decided].sum())
        left_out += int((~decided).sum())
        furthest = max(furthest, float(distance[decided].max()))
    return elements, different, left_out, furthest


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=str)
@pytest.mark.parametrize(("dtype", "delta"), [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)])
def test_a_sixteen_bit_base(
    workshop: Callable[..., Workshop], composition: Composition, dtype: torch.dtype, delta: torch.dtype
) -> None:
    base = {name: random_tensor(shape, i, 0.05, dtype) for i, (name, shape) in enumerate(SHAPES.items())}
    vectors = [
        {name: random_tensor(shape, 10 * n + i, 0.004, delta) for i, (name, shape) in enumerate(SHAPES.items())}
        for n in (1, 2, 3)
    ]
    elements, different, left_out, furthest = compare(workshop(base), base, vectors, composition)
    assert elements == 98_191
    assert different <= elements / 1000
    assert left_out <= elements / 1000
    assert furthest <= 1.0


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("composition", [COMPOSITIONS[0], COMPOSITIONS[1], COMPOSITIONS[4]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wider_base(
    workshop: Callable[..., Workshop], composition: Composition, dtype: torch.dtype, count: int
) -> None:
    """Within (n + 3) roundings of the compute dtype; n + 6 where λ and a quotient are in it."""
    shapes = {"model.layers.0.a": (90, 80), "model.norm": (301,)}
    base = {name: random_tensor(shape, i, 0.05, dtype) for i, (name, shape) in enumerate(shapes.items())}
    vectors = [
        {name: random_tensor(shape, 10 * n + i, 0.02) for i, (name, shape) in enumerate(shapes.items())}
        for n in range(1, count + 1)
    ]
    shop = workshop(base)
    ids = [shop.dense(vector) for vector in vectors]
    composer = shop.composer([shop.use(i, scale) for i, scale in zip(ids, SCALES, strict=False)], composition)
    wide = [{name: float64(tensor) for name, tensor in vector.items()} for vector in vectors]
    wanted = reference(wide, SCALES[:count], composition)
    steps = count + (3 if composition.method == "linear" else 6)
    for name, tensor in base.items():
        delta, decided = wanted[name]
        terms = np.sum([abs(scale) * np.abs(v[name]) for scale, v in zip(SCALES, wide, strict=False)], axis=0)
        if composition.normalize == "weighted":
            terms = terms / min(abs(scale) for scale in SCALES[:count])
        bound = steps * torch.finfo(dtype).eps / 2 * (np.abs(float64(tensor)) + terms)
        error = np.abs(float64(composer.tensor(name)) - (float64(tensor) + delta))
        assert (error <= bound)[decided].all()
        assert decided.mean() > 0.999


@PROPERTY
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 4),
    dtype=st.sampled_from(list(FORMATS)),
    delta=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    composition=st.sampled_from(
        [
            Composition(),
            *(
                Composition.model_validate({"method": "ties", "density": density, "trim_scope": scope, "lambda": lam})
                for density, scope, lam in ((0.3, "vector", 1.0), (0.8, "tensor", 0.5), (1.0, "vector", -2.0))
            ),
        ]
    ),
    data=st.data(),
)
def test_every_bit_where_float32_loses_nothing(
    workshop: Callable[..., Workshop],
    seed: int,
    count: int,
    dtype: torch.dtype,
    delta: torch.dtype,
    composition: Composition,
    data: st.DataObject,
) -> None:
    """Multiples of 2⁻⁹ of at most eight bits, scales of powers of two: sums are exact, cancellations and ties too."""
    generator = torch.Generator().manual_seed(seed)

    def grid(shape: tuple[int, ...], of: torch.dtype) -> Tensor:
        return (torch.randint(-128, 129, shape, generator=generator) * 2.0**-9).to(of)

    shapes = {"model.a": (7, 9), "model.b": (31,), "model.c": ()}
    base = {name: grid(shape, dtype) for name, shape in shapes.items()}
    vectors = [{name: grid(shape, delta) for name, shape in shapes.items()} for _ in range(count)]
    scales = data.draw(st.lists(st.sampled_from([1.0, -1.0, 0.5, 2.0, -0.25]), min_size=count, max_size=count))
    shop = workshop(base)
    ids = [shop.dense(vector) for vector in vectors]
    if len(set(ids)) < count:
        return  # the same numbers by chance: one vector
    composer = shop.composer([shop.use(i, scale) for i, scale in zip(ids, scales, strict=True)], composition)
    wide = [{name: float64(tensor) for name, tensor in vector.items()} for vector in vectors]
    wanted = reference(wide, scales, composition)
    for name, tensor in base.items():
        assert np.array_equal(float64(composer.tensor(name)), rounded(float64(tensor) + wanted[name][0], dtype)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_rank_vectors(workshop: Callable[..., Workshop], dtype: torch.dtype) -> None:
    """Against the product of the factors in float64."""
    base = {"w": random_tensor((200, 300), 0, 0.05, dtype)}
    shop = workshop(base)
    factors = [(random_tensor((16, 300), 2 * n, 0.05), random_tensor((200, 16), 2 * n + 1, 0.05)) for n in (1, 2)]
    ids = [shop.low_rank({"w": (a, b, scaling)}) for (a, b), scaling in zip(factors, (2.0, 0.3), strict=True)]
    composer = shop.composer([shop.use(i, scale) for i, scale in zip(ids, SCALES, strict=False)])
    delta = sum(
        scale * scaling * (float64(b) @ float64(a))
        for (a, b), scaling, scale in zip(factors, (2.0, 0.3), SCALES, strict=False)
    )
    right, found = rounded(float64(base["w"]) + delta, dtype), float64(composer.tensor("w"))
    assert (found != right).mean() <= 1e-3
    assert (np.abs(found - right) <= np.maximum(unit(right, dtype), unit(found, dtype))).all()


def mergekit(
    method: str, base: Tensor, tuned: Sequence[Tensor], scales: Sequence[float], density: float, normalize: bool
) -> Tensor:
    """The same by mergekit's function for one tensor, in the dtype of what it is given."""
    from mergekit.merge_methods.api import merge_tensors

    parameters = {"weight": list(scales), "normalize": normalize, **({"density": density} if method == "ties" else {})}
    found: Tensor = merge_tensors([base, *tuned], method, parameters=parameters, base_index=0, name="w")
    return found


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize(("method", "normalize"), [("task_arithmetic", False), ("ties", False), ("ties", True)])
def test_mergekit_in_bfloat16(
    workshop: Callable[..., Workshop], method: str, normalize: bool, density: float, count: int
) -> None:
    """Fine-tunes that move each weight by a few per cent, all of it in bfloat16.

    One unit in the last place, at the larger of the weight before and after, wherever both trim alike and elect the
    same sign; mergekit's own roundings of differences, products and sums are the distance.
    """
    scales = [abs(scale) for scale in SCALES[:count]]
    base = random_tensor((300, 200), 0, 0.05, torch.bfloat16)
    tuned = [(base.float() * (1 + random_tensor((300, 200), n, 0.02))).bfloat16() for n in range(1, count + 1)]
    differences = [one.float() - base.float() for one in tuned]  # exact: neighbors of each other
    theirs = mergekit(method, base, tuned, scales, density, normalize)
    shop = workshop({"w": base})
    ids = [shop.dense({"w": difference}) for difference in differences]
    composition = Composition.model_validate(
        {
            "method": "ties" if method == "ties" else "linear",
            "density": density,
            "normalize": "weighted" if normalize else "sum",
            "trim_scope": "tensor",
        }
    )
    uses = [shop.use(i, scale) for i, scale in zip(ids, scales, strict=True)]
    ours = shop.composer(uses, composition).tensor("w")
    decided = np.ones(base.shape, dtype=np.bool_)
    if method == "ties":
        magnitudes = np.stack([np.abs(float64(difference)) for difference in differences])
        k = max(1, int(density * base.numel()))
        limits = [np.sort(each.ravel())[::-1][k - 1] for each in magnitudes]
        x = np.stack(
            [
                s * float64(d) * (m >= limit)
                for s, d, m, limit in zip(scales, differences, magnitudes, limits, strict=True)
            ]
        )
        if density < 1:  # of several equal to the k-th, mergekit keeps some
            decided &= ~np.any([m == limit for m, limit in zip(magnitudes, limits, strict=True)], axis=0)
        decided &= (np.abs(x.sum(0)) >= np.abs(x).sum(0) / 64) | (x == 0).all(0)
    largest = np.maximum(np.abs(float64(base)), np.maximum(np.abs(float64(ours)), np.abs(float64(theirs))))
    distance = np.abs(float64(ours) - float64(theirs)) / unit(largest, torch.bfloat16)
    assert decided.mean() > 0.8
    assert distance[decided].max() <= 1.0
    assert (distance[decided] == 0).mean() > 0.7
