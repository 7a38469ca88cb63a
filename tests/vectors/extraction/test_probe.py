from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.vectors.extraction.probe import logistic_direction


def drawn(pairs: int, width: int, seed: int, size: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(width, generator=generator)
    return (torch.randn(pairs, width, generator=generator) + 0.3 * shift) * size


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.integers(1, 20),
    width=st.integers(1, 30),
    size=st.sampled_from([0.01, 1.0, 30.0]),
    strength=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_the_gradient_vanishes(pairs: int, width: int, size: float, strength: float, seed: int) -> None:
    differences = drawn(pairs, width, seed, size).double()
    w = logistic_direction(differences, strength=strength)
    points = torch.cat([differences, -differences]) / 2
    labels = torch.cat([torch.ones(pairs), -torch.ones(pairs)]).double()
    w = w.requires_grad_()
    loss = w @ w / 2 + strength * torch.nn.functional.softplus(-labels * (points @ w)).sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert float(gradient.norm()) <= 1e-5 * (1 + float(w.detach().norm()))


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_as_scikit_learn(size: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn as a second opinion")
    differences = drawn(60, 20, 0, size)
    points = torch.cat([differences, -differences]).double() / 2
    labels = [1] * 60 + [-1] * 60
    fit = linear.LogisticRegression(fit_intercept=False, tol=1e-8, max_iter=5000).fit(points.numpy(), labels)
    expected = torch.tensor(fit.coef_[0])
    found = logistic_direction(differences)
    assert float(torch.cosine_similarity(found, expected, dim=0)) > 0.9999
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=1e-3)


def test_repeated_and_zero_differences() -> None:
    one = torch.tensor([[1.0, 2.0, 0.0]])
    found = logistic_direction(torch.cat([one, one, torch.zeros(3, 3)]))
    assert float(torch.cosine_similarity(found, one[0].double(), dim=0)) == pytest.approx(1.0)
    assert not logistic_direction(torch.zeros(4, 3)).any()
