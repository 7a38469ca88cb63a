"""Muon, the optimizer of the playground base's hidden matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring each matrix close to the nearest semi-orthogonal one by a quintic Newton-Schulz iteration.

    X <- aX + b(XXᵀ)X + c(XXᵀ)²X, from Jordan et al., "Muon: An optimizer for hidden layers in neural
    networks" (2024). The singular values end between about 0.7 and 1.2, which serves as well as exactly 1.

    Args:
        matrices: [batch, rows, columns], float32.
        steps: iterations.

    Returns:
        [batch, rows, columns], float32.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum whose update is orthogonalized, for matrices only (Jordan et al. 2024; Nesterov).

    Matrices of one shape are handled in one batch, since a small model has many and each is cheap.

    Args:
        parameters: matrices [rows, columns] with gradients.
        lr: learning rate; callers may change the attribute between steps.
        momentum: decay of the running sum of gradients.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        self.lr = lr
        self.momentum = momentum
        groups: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self._groups = list(groups.values())
        self._buffers = [torch.zeros(len(group), *group[0].shape) for group in self._groups]

    @torch.no_grad()
    def step(self) -> None:
        """Change every matrix once by its gradient."""
        for group, buffer in zip(self._groups, self._buffers, strict=True):
            gradients = torch.stack([_gradient(parameter) for parameter in group])
            buffer.mul_(self.momentum).add_(gradients)
            update = orthogonalize(gradients.add_(buffer, alpha=self.momentum))
            rows, columns = group[0].shape
            # Jordan's factor: an update of the same size per entry whatever the shape.
            scale = self.lr * max(1.0, rows / columns) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.add_(change, alpha=-scale)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad
