from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.proving.redundancy import redundancy


def draw(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_it_is_the_r_squared_of_least_squares(seed: int, count: int) -> None:
    rows = draw(count + 1, 40, seed)
    direction, others = rows[0], rows[1:]
    solution = torch.linalg.lstsq(others.T, direction[:, None]).solution
    residual = direction - (others.T @ solution)[:, 0]
    expected = 1 - float(residual.square().sum() / direction.square().sum())
    found = redundancy(direction, list(others))
    assert found == pytest.approx(expected, abs=1e-9)
    # Neither lengths nor the same direction twice matter.
    assert redundancy(direction * 7, [*(others * 0.01), others[0] * 3]) == pytest.approx(expected, abs=1e-9)


def test_a_sum_of_others_is_wholly_redundant_and_an_orthogonal_one_not() -> None:
    others = [torch.eye(8)[0], torch.eye(8)[1]]
    assert redundancy(others[0] - 2 * others[1], others) == pytest.approx(1.0)
    assert redundancy(torch.eye(8)[2], others) == pytest.approx(0.0)
    assert redundancy(torch.eye(8)[0] + torch.eye(8)[2], others) == pytest.approx(0.5)


def test_without_others_there_is_none() -> None:
    assert redundancy(torch.ones(4), []) is None
    assert redundancy(torch.ones(4), [torch.zeros(4)]) is None
    assert redundancy(torch.zeros(4), [torch.ones(4)]) is None
