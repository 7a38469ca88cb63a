from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from personality.manifests.errors import UsageError
from personality.vectors.training.apollo import Apollo
from personality.vectors.training.weight_update import ROUNDINGS, MovementMeter, Rounding, add_update

SHAPES = [(48, 96), (96, 48), (3, 32, 48), (4800,)]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def movement(dtype: torch.dtype, weights: Rounding, steps: int, **options: Any) -> tuple[Tensor, Apollo]:
    """How far a run takes bfloat16-sized weights, all parameters in one vector, and its optimizer."""
    generator = torch.Generator().manual_seed(0)
    starts = [(torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16).to(dtype) for shape in SHAPES]
    params = [torch.nn.Parameter(start.clone()) for start in starts]
    steady = [torch.randn(shape, generator=generator) for shape in SHAPES]
    optimizer = Apollo(params, lr=1e-5, rank=8, weights=weights, **options)
    for _ in range(steps):
        for param, direction in zip(params, steady, strict=True):
            noise = torch.randn(direction.shape, generator=generator)
            param.grad = (direction + 0.5 * noise).to(torch.bfloat16).to(dtype)
        optimizer.step()
    moved = [(param.detach().float() - start.float()).flatten() for param, start in zip(params, starts, strict=True)]
    return torch.cat(moved), optimizer


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return movement(torch.float32, "nearest", 200)[0]


def test_plain_rounding_loses_most_of_a_run(exact: Tensor) -> None:
    moved, optimizer = movement(torch.bfloat16, "nearest", 200)
    measured = optimizer.survival()
    assert cosine(moved, exact) < 0.7
    assert measured.share_changed < 0.5
    assert measured.cosine == pytest.approx(cosine(moved, exact), abs=0.05)
    assert measured.share_changed == pytest.approx(float((moved != 0).float().mean()), abs=0.03)


@pytest.mark.parametrize(("weights", "least"), [("compensated", 0.99), ("stochastic", 0.97)])
def test_other_roundings_arrive(exact: Tensor, weights: Rounding, least: float) -> None:
    moved, optimizer = movement(torch.bfloat16, weights, 200)
    assert cosine(moved, exact) > least
    assert optimizer.survival().cosine == pytest.approx(cosine(moved, exact), abs=0.01)
    assert float(moved.norm() / exact.norm()) == pytest.approx(1.0, abs=0.05)


def test_float32_weights_are_not_touched_by_the_option(exact: Tensor) -> None:
    for weights in ROUNDINGS:
        moved, optimizer = movement(torch.float32, weights, 200)
        assert torch.equal(moved, exact)
        assert (optimizer.survival().elements, optimizer.survival().cosine) == (0, 1.0)
        assert all("compensation" not in state for state in optimizer.state.values())


def test_weight_decay_reaches_the_weights_and_the_meter() -> None:
    param = torch.nn.Parameter(torch.full((4, 6), 0.5, dtype=torch.bfloat16))
    param.grad = torch.zeros(4, 6, dtype=torch.bfloat16)
    optimizer = Apollo([param], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(param, torch.full((4, 6), 0.475).to(torch.bfloat16))
    assert optimizer.survival().elements == 24
    assert optimizer.survival().cosine > 0.99


def test_rounding_by_hand() -> None:
    # Around 1 bfloat16 has steps of 1/128; a third of a step arrives by the third time.
    weight, lost = torch.ones(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
    seen = []
    for _ in range(3):
        add_update(weight, torch.tensor([1 / 384]), "compensated", compensation=lost)
        seen.append(float(weight))
    assert seen == [1.0, 1 + 1 / 128, 1 + 1 / 128]
    assert abs(float(lost)) < 1e-4
    add_update(weight, torch.tensor([1 / 384]), "nearest")
    assert float(weight) == 1 + 1 / 128


def test_stochastic_rounding_is_unbiased_and_exact_where_it_can_be() -> None:
    count = 40_000
    for start, delta in ((1.0, 1 / 512), (-1.0, 1 / 512), (3.0, -1 / 1000), (1e-20, 3e-23)):
        weight = torch.full((count,), start).to(torch.bfloat16)
        before = weight.double()
        add_update(weight, torch.full((count,), delta), "stochastic", generator=torch.Generator().manual_seed(4))
        moved = weight.double() - before
        assert len(set(moved.tolist())) == 2
        assert float(moved.mean()) == pytest.approx(delta, rel=0.05)
    weight = torch.tensor([1.0, -2.0, 0.0], dtype=torch.bfloat16)
    add_update(weight, torch.tensor([0.5, 0.25, 0.0]), "stochastic", generator=torch.Generator().manual_seed(5))
    assert weight.tolist() == [1.5, -1.75, 0.0]


@pytest.mark.parametrize("weights", ROUNDINGS)
def test_same_seed_same_bits_and_another_seed_others(weights: Rounding) -> None:
    first, again = (movement(torch.bfloat16, weights, 5, seed=1)[0] for _ in range(2))
    other = movement(torch.bfloat16, weights, 5, seed=2)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_meter_follows_small_parameters_completely() -> None:
    meter = MovementMeter()
    weight = torch.ones(2, 3, dtype=torch.bfloat16)
    where = meter.where(weight, 0)
    delta = torch.tensor([[1e-3, 6e-3, 0.0], [0.0, 0.0, 0.0]])
    meter.add(weight, delta[where])
    add_update(weight, delta, "nearest")
    found = meter.result()
    assert (found.elements, found.changed) == (2, 1)
    assert found.cosine == pytest.approx(6e-3 / (1e-6 + 36e-6) ** 0.5, rel=1e-6)


def test_what_cannot_be_rounded_so_is_refused() -> None:
    half = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float16))
    with pytest.raises(UsageError, match="float16"):
        Apollo([half], weights="stochastic")
    unknown: Any = "up"
    with pytest.raises(UsageError, match="weights is 'up'"):
        Apollo([half], weights=unknown)
    half.grad = torch.ones(2, 2, dtype=torch.float16)
    Apollo([half], weights="compensated").step()
    assert float(half.detach().abs().max()) > 0
