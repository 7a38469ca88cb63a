from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.composition.low_rank_sum import truncate_sum
from tests.composition.conftest import random_tensor


def products(ranks: tuple[int, ...], rows: int, columns: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    # Factors of very different sizes, as learned ones are: A near its start, B grown from 0.
    return [
        (random_tensor((rows, rank), seed + 2 * i, 10.0**i), random_tensor((rank, columns), seed + 2 * i + 1, 0.01))
        for i, rank in enumerate(ranks)
    ]


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    rank=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_a_sum_is_truncated_as_its_whole_matrix_would_be(
    ranks: tuple[int, ...], rows: int, columns: int, rank: int, seed: int
) -> None:
    """Eckart-Young on the matrix itself, in float64, is the oracle."""
    pairs = products(ranks, rows, columns, seed)
    whole = sum((left.double() @ right.double() for left, right in pairs), torch.zeros(rows, columns).double())
    u, singular, vh = torch.linalg.svd(whole, full_matrices=False)
    best = u[:, :rank] * singular[:rank] @ vh[:rank]
    found = truncate_sum(pairs, rank)
    size = float(whole.norm())
    assert found.rank <= min(rank, sum(ranks), rows, columns)
    assert found.norm == pytest.approx(size)
    assert found.lost == pytest.approx(float(singular[rank:].norm()), abs=1e-9 * size)
    kept = found.b.double() @ found.a.double()
    assert float((whole - kept).norm()) == pytest.approx(found.lost, abs=1e-6 * size)
    if rank >= sum(ranks):
        assert float((kept - best).norm()) <= 1e-6 * size


def test_the_factors_share_the_singular_values() -> None:
    found = truncate_sum(products((4, 4), 32, 48, 0), 6)
    gram_b, gram_a = found.b.T @ found.b, found.a @ found.a.T
    singular = gram_b.diagonal()
    torch.testing.assert_close(gram_b, torch.diag(singular), atol=1e-5 * float(singular[0]), rtol=0)
    torch.testing.assert_close(gram_a, gram_b, atol=1e-5 * float(singular[0]), rtol=0)


def test_a_sum_never_makes_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of 10^10 elements, 40 GB in float32, in two thin factors."""
    side = 100_000
    left, right = random_tensor((side, 2), 0), random_tensor((2, side), 1)
    found = truncate_sum([(left, right), (left * 0.5, -right)], 2)
    assert found.lost <= 1e-12 * found.norm
    row = found.b[7] @ found.a
    torch.testing.assert_close(row, left[7] @ right * 0.5, atol=1e-5, rtol=1e-4)


def test_no_change_is_no_loss() -> None:
    none = truncate_sum([(torch.zeros(6, 2), torch.randn(2, 9))], 4)
    assert none.norm == none.lost == 0
    assert bool(torch.isfinite(none.b).all())
