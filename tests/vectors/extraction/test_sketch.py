from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.vectors.extraction.sketch import PrincipalSketch


def drawn(rows: int, width: int, seed: int, *, shift: float = 3.0) -> Tensor:
    """Rows with a mean and a decaying spectrum in random axes."""
    generator = torch.Generator().manual_seed(seed)
    scales = 0.7 ** torch.arange(width)
    axes: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    spread = torch.randn(rows, width, generator=generator) * scales
    return torch.mm(spread, axes) + shift * axes[-1]


def scatter(rows: Tensor, *, centered: bool) -> Tensor:
    wide: Tensor = rows.double()
    if centered:
        wide = wide - wide.mean(0)
    return torch.mm(wide.T, wide)


def rebuilt(sketch: PrincipalSketch, *, centered: bool) -> Tensor:
    values, vectors = sketch.principal(centered=centered)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(vectors), dtype=torch.float64), atol=1e-5, rtol=0)
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    return vectors.T @ (values[:, None] * vectors)


@settings(deadline=None, max_examples=40)
@given(
    rank=st.integers(1, 12),
    rows=st.integers(1, 12),
    width=st.integers(1, 20),
    cut=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_exact_while_the_rank_holds_all_rows(rank: int, rows: int, width: int, cut: int, seed: int) -> None:
    rows = min(rows, rank + 1)
    data, sketch = drawn(rows, width, seed), PrincipalSketch(width, rank)
    for part in torch.split(data, cut):
        sketch.add(part)
    torch.testing.assert_close(sketch.mean(), data.double().mean(0), atol=1e-6, rtol=1e-6)
    for centered in (False, True):
        expected = scatter(data, centered=centered)
        torch.testing.assert_close(rebuilt(sketch, centered=centered), expected, atol=2e-5, rtol=1e-5)
    assert sketch.lost < 1e-9


@settings(deadline=None, max_examples=40)
@given(rank=st.integers(1, 8), rows=st.integers(1, 60), width=st.integers(1, 16), seed=st.integers(0, 99))
def test_a_lower_bound_by_a_known_margin(rank: int, rows: int, width: int, seed: int) -> None:
    data, sketch = drawn(rows, width, seed), PrincipalSketch(width, rank)
    sketch.add(data)
    # The mean is not sketched, so about zero and about the mean what is lost is the same.
    for centered in (False, True):
        missing = torch.linalg.eigvalsh(scatter(data, centered=centered) - rebuilt(sketch, centered=centered))
        assert float(missing.min()) > -1e-3
        assert float(missing.max()) <= sketch.lost + 1e-3


@pytest.mark.parametrize("centered", [False, True])
def test_leading_components_survive_many_rows(centered: bool) -> None:
    data, sketch = drawn(2000, 40, 0), PrincipalSketch(40, 8)
    sketch.add(data)
    values, vectors = torch.linalg.eigh(scatter(data, centered=centered))
    found_values, found = sketch.principal(centered=centered)
    for index in range(3):
        assert float((found[index] @ vectors[:, -1 - index]).abs()) > 0.999
        assert float(found_values[index]) == pytest.approx(float(values[-1 - index]), rel=0.01)


def test_how_rows_are_cut_into_calls_changes_nothing() -> None:
    data = drawn(100, 20, 1)
    whole, parts = PrincipalSketch(20, 6), PrincipalSketch(20, 6)
    whole.add(data)
    for part in torch.split(data, [1, 30, 2, 60, 7]):
        parts.add(part)
    for centered in (False, True):
        torch.testing.assert_close(
            whole.principal(centered=centered)[0], parts.principal(centered=centered)[0], atol=0, rtol=0
        )


def test_a_mean_far_out_does_not_drown_what_is_about_it() -> None:
    data, sketch = drawn(50, 10, 2, shift=1e4), PrincipalSketch(10, 4)
    sketch.add(data)
    expected = torch.linalg.eigh(scatter(data, centered=True))[1][:, -1]
    assert float((sketch.principal(centered=True)[1][0] @ expected).abs()) > 0.999


def test_rows_without_variation_have_no_component() -> None:
    sketch = PrincipalSketch(5, 3)
    sketch.add(torch.ones(8, 5))
    assert len(sketch.principal(centered=True)[0]) == 0
    values, vectors = sketch.principal(centered=False)
    assert values.tolist() == pytest.approx([40.0])
    torch.testing.assert_close(vectors[0].abs(), torch.full((5,), 0.2**0.5, dtype=torch.float64))
    assert len(PrincipalSketch(5, 3).principal(centered=False)[0]) == 0


def test_memory_does_not_grow_with_the_rows() -> None:
    sketch, sizes = PrincipalSketch(64, 8), []
    for _ in range(20):
        sketch.add(torch.randn(20, 64))
        sizes.append(sketch.kept_bytes)
    assert max(sizes) <= 2 * 8 * 64 * 4 + 64 * 8
