from __future__ import annotations

import pytest
import torch

from personality.vectors import truncation
from personality.vectors.truncation import truncate_matrix
from tests.composition.conftest import random_tensor


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30), (1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_matrix_is_truncated_exactly(shape: tuple[int, int], dtype: torch.dtype) -> None:
    delta = random_tensor(shape, 3).to(dtype)
    found = truncate_matrix(delta, 7)
    singular = torch.linalg.svdvals(delta.double())
    assert found.rank == min(7, *shape)
    assert found.lost == pytest.approx(float(singular[7:].norm()), rel=1e-5, abs=1e-5 * found.norm)
    assert found.norm == pytest.approx(float(delta.double().norm()))


@pytest.mark.parametrize(("decay", "allowed"), [(0.0, 5e-3), (0.7, 5e-4)])
def test_a_large_matrix_comes_near_the_optimum(decay: float, allowed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers, whose singular values are all alike, are the worst case; those of training fall off."""
    monkeypatch.setattr(truncation, "EXACT_SIZE", 100)
    delta = random_tensor((400, 600), 5)
    u, singular, vh = torch.linalg.svd(delta, full_matrices=False)
    delta = u * (singular * torch.arange(1, 401.0) ** -decay) @ vh
    optimum = float(torch.linalg.svdvals(delta.double())[32:].norm())
    state = torch.get_rng_state()
    found = truncate_matrix(delta, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert optimum * (1 - 1e-6) <= found.lost <= optimum * (1 + allowed)
    assert found.lost == pytest.approx(float((delta.double() - found.b.double() @ found.a.double()).norm()))
    again = truncate_matrix(delta, 32)
    assert torch.equal(found.b, again.b)


def test_no_change_is_no_loss() -> None:
    found = truncate_matrix(torch.zeros(6, 9), 4)
    assert found.norm == found.lost == 0
    assert not bool(found.b.any())
