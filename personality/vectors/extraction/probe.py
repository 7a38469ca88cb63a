"""A logistic probe on the differences of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 100
_TOLERANCE = 1e-8
_SMALLEST_STEP = 2.0**-20


def logistic_direction(differences: Tensor, *, strength: float = 1.0) -> Tensor:
    """Weights of a logistic regression that tells the positive text of a pair from the negative one.

    Each pair is centered on its own mean, which takes out what the two texts share (their topic): x⁺ = δ/2 and
    x⁻ = −δ/2 for a difference δ = d⁺ − d⁻. Minimized, as by scikit-learn's `LogisticRegression(fit_intercept=False)`
    on these 2n points, is ½‖w‖² + C Σ log(1 + exp(−y w·x)) = ½‖w‖² + 2C Σ log(1 + exp(−w·δ/2)); without the penalty
    it would be the conditional likelihood of matched pairs (Breslow and Day 1980). There is no intercept, since the
    points are symmetric about zero. The minimum lies in the span of the differences, and there Newton's method works
    on at most n coordinates, in float64.

    Args:
        differences: (n, d), finite.
        strength: C, how much the pairs weigh against the penalty.

    Returns:
        w, float64 (d,); zero when all differences are.
    """
    X = differences.double() / 2
    values, vectors = torch.linalg.eigh(X @ X.T)
    kept = values > 1e-12 * values[-1:]
    # Orthonormal coordinates of the span: X = Z V with Z (n, r) and V (r, d).
    roots = values[kept].clamp_min(0).sqrt()
    Z = vectors[:, kept] * roots
    V = vectors[:, kept].T @ X / roots[:, None]
    w = torch.zeros(Z.shape[1], dtype=torch.float64)
    loss = _loss(Z, w, strength)
    for _ in range(_STEPS):
        p = torch.sigmoid(-(Z @ w))
        gradient = w - 2 * strength * Z.T @ p
        if float(gradient.norm()) <= _TOLERANCE * (1 + float(w.norm())):
            break
        hessian = 2 * strength * (Z.T * (p * (1 - p))) @ Z
        hessian.diagonal().add_(1)
        step = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while (after := _loss(Z, w - size * step, strength)) > loss - 1e-4 * size * float(gradient @ step):
            size /= 2
            if size < _SMALLEST_STEP:  # as low as rounding lets the loss go
                return torch.mv(V.T, w)
        w, loss = w - size * step, after
    return torch.mv(V.T, w)


def _loss(Z: Tensor, w: Tensor, strength: float) -> float:
    return float(w @ w / 2 + 2 * strength * torch.nn.functional.softplus(-(Z @ w)).sum())
