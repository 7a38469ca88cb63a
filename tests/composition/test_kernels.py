from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.composition import kernels
from tests.composition.conftest import random_tensor, same_bits

SCALES = st.floats(-4, 4, allow_nan=False).filter(lambda scale: abs(scale) > 1e-6)
NORMALIZATIONS = ("sum", "mean", "weighted")


def test_linear_is_the_sum_in_the_order_given() -> None:
    deltas = [random_tensor((7, 5), seed) for seed in range(3)]
    wanted = (deltas[0] * 0.3 + deltas[1] * -1.2) + deltas[2] * 0.7
    assert same_bits(kernels.linear(deltas, [0.3, -1.2, 0.7]), wanted)


def test_linear_leaves_its_input_alone() -> None:
    deltas = [random_tensor((4, 4), seed) for seed in range(2)]
    before = [delta.clone() for delta in deltas]
    kernels.linear(deltas, [1.0, 1.0])
    kernels.ties(deltas, [1.0, 1.0], "sum", 1.0)
    assert all(same_bits(old, new) for old, new in zip(before, deltas, strict=True))


@settings(max_examples=60, deadline=None)
@given(scale=SCALES, seed=st.integers(0, 1000), normalize=st.sampled_from(["sum", "mean"]))
def test_ties_with_one_untrimmed_vector_is_linear(scale: float, seed: int, normalize: str) -> None:
    delta = random_tensor((9, 11), seed)
    kept = kernels.trim(delta, 0.0)
    assert same_bits(kernels.ties([kept], [scale], normalize, 1.0), kernels.linear([delta], [scale]))


def test_ties_weighted_takes_the_scale_out_again() -> None:
    delta = random_tensor((9, 11), 5)
    found = kernels.ties([delta], [-0.5], "weighted", 1.0)
    assert same_bits(found, -delta)


def ties_reference(vectors: list[Tensor], scales: list[float], normalize: str, lam: float) -> list[float]:
    """Element by element, in Python's floats; written from the formulas alone."""
    found = []
    for values in zip(*[vector.reshape(-1).tolist() for vector in vectors], strict=True):
        x = [scale * value for scale, value in zip(scales, values, strict=True)]
        total = math.fsum(x)
        elected = (total > 0) - (total < 0)
        agreeing = [i for i, value in enumerate(x) if value != 0 and (value > 0) - (value < 0) == elected]
        if not agreeing:
            found.append(0.0)
            continue
        n = {"sum": 1.0, "mean": len(agreeing), "weighted": sum(abs(scales[i]) for i in agreeing)}[normalize]
        found.append(lam * sum(x[i] for i in agreeing) / n)
    return found


@settings(max_examples=60, deadline=None)
@given(
    scales=st.lists(SCALES, min_size=1, max_size=5),
    normalize=st.sampled_from(NORMALIZATIONS),
    lam=st.sampled_from([1.0, 0.3, -2.0]),
    seed=st.integers(0, 10_000),
)
def test_ties_against_plain_python(scales: list[float], normalize: str, lam: float, seed: int) -> None:
    vectors = [kernels.trim(random_tensor((6, 8), seed + index).double(), 0.6) for index in range(len(scales))]
    wanted = torch.tensor(ties_reference(vectors, scales, normalize, lam), dtype=torch.float64).reshape(6, 8)
    found = kernels.ties(vectors, scales, normalize, lam)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_signs_that_cancel_exactly_give_zero(normalize: str) -> None:
    delta = torch.tensor([[1.0, 2.0, 0.0]])
    found = kernels.ties([delta, -delta], [1.0, 1.0], normalize, 1.0)
    assert found.tolist() == [[0.0, 0.0, 0.0]]


def test_the_minority_is_left_out() -> None:
    vectors = [torch.tensor([[3.0]]), torch.tensor([[-1.0]]), torch.tensor([[-1.0]])]
    assert kernels.ties(vectors, [1.0] * 3, "sum", 1.0).item() == 3.0
    assert kernels.ties(vectors, [1.0, 2.0, 2.0], "sum", 1.0).item() == -4.0
    assert kernels.ties(vectors, [1.0, 2.0, 2.0], "mean", 1.0).item() == -2.0
    assert kernels.ties(vectors, [1.0, 2.0, 2.0], "weighted", 1.0).item() == -1.0
    assert kernels.ties(vectors, [1.0, 2.0, 2.0], "sum", 0.5).item() == -2.0


def test_a_negative_scale_votes_with_its_own_sign() -> None:
    vectors = [torch.tensor([[1.0]]), torch.tensor([[1.0]])]
    assert kernels.ties(vectors, [1.0, -3.0], "sum", 1.0).item() == -3.0
    assert kernels.ties(vectors, [1.0, -3.0], "weighted", 1.0).item() == -1.0


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_where_an_element_lies_changes_no_bit(normalize: str) -> None:
    """Vectorized loops end in a scalar rest: both must round alike."""
    scales = [0.7, -1.3, 0.9]
    vectors = [random_tensor((1, 67), seed) for seed in range(3)]
    whole = kernels.ties(vectors, scales, normalize, 0.9)
    for first, last in itertools.pairwise(range(0, 68, 1)):
        part = kernels.ties([vector[:, first:last] for vector in vectors], scales, normalize, 0.9)
        assert same_bits(part, whole[:, first:last].clone())


def test_trim_keeps_what_reaches_the_threshold() -> None:
    delta = torch.tensor([[0.5, -0.5, 0.49, -0.51, 0.0]])
    assert kernels.trim(delta, 0.5).tolist() == [[0.5, -0.5, 0.0, torch.tensor(-0.51).item(), 0.0]]
    assert same_bits(kernels.trim(delta, 0.0), delta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_zero_change_keeps_the_bits_of_the_base(dtype: torch.dtype) -> None:
    base = torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=dtype)
    for zero in (0.0, -0.0):
        assert same_bits(kernels.add_to_base(base, torch.full((4,), zero)), base)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    scale=SCALES,
)
def test_one_rounding_at_the_end(seed: int, dtype: torch.dtype, scale: float) -> None:
    """Against float64: half a unit of the base's dtype, and float32's own error for float32."""
    base = random_tensor((16, 16), seed, dtype=dtype)
    delta = random_tensor((16, 16), seed + 1, size=0.1)
    found = kernels.add_to_base(base, kernels.linear([delta], [scale])).double()
    exact = base.double() + scale * delta.double()
    half = torch.finfo(dtype).eps / 2
    inner = 4 * torch.finfo(torch.float32).eps * (base.double().abs() + (scale * delta.double()).abs())
    bound = exact.abs() * half + inner + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert bool(((found - exact).abs() <= bound).all())
