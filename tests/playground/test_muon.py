from __future__ import annotations

import pytest
import torch

from personality.playground.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 32), (2, 32, 8)])
def test_singular_values_come_close_to_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_singular_vectors_stay() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(1, 6, 10)
    u, _, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    rotated = u.T @ orthogonalize(matrix)[0] @ vh.T
    assert torch.allclose(rotated, torch.diag(rotated.diagonal()), atol=1e-4)


def test_a_batch_is_its_matrices_one_by_one() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 12, 7)
    together = orthogonalize(matrices)
    for matrix, result in zip(matrices, together, strict=True):
        assert torch.allclose(orthogonalize(matrix[None])[0], result, atol=1e-5)


def test_it_fits_a_linear_map() -> None:
    torch.manual_seed(0)
    goal = torch.linalg.qr(torch.randn(12, 12)).Q
    weight = torch.nn.Parameter(torch.zeros(12, 12))
    optimizer = Muon([weight], lr=0.05)
    first = ((weight - goal) ** 2).sum().item()
    for step in range(150):
        optimizer.lr = 0.05 * (1 - step / 150)
        weight.grad = None
        ((weight - goal) ** 2).sum().backward()
        optimizer.step()
    assert ((weight - goal) ** 2).sum().item() < 0.01 * first


def test_a_parameter_without_gradient_does_not_move_at_first() -> None:
    still, moving = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = Muon([still, moving], lr=0.1)
    moving.grad = torch.eye(4)
    optimizer.step()
    assert torch.equal(still, torch.ones(4, 4))
    assert not torch.equal(moving, torch.ones(4, 4))
