from __future__ import annotations

import pytest
import torch

from personality.vectors.training.projections import (
    ProjectionCache,
    mix_seed,
    product_dtype,
    project,
    projection,
)

CPU = torch.device("cpu")


def test_projections_keep_lengths_and_differ_between_parameters_and_periods() -> None:
    P = projection(1, 0, 64, 400, CPU)
    assert P.shape == (64, 400)
    assert torch.equal(P, projection(1, 0, 64, 400, CPU))
    vectors = torch.randn(400, 200, generator=torch.Generator().manual_seed(0))
    kept = (P @ vectors).square().sum(0) / vectors.square().sum(0)
    assert abs(float(kept.mean()) - 1.0) < 0.05
    for other in (projection(1, 1, 64, 400, CPU), projection(2, 0, 64, 400, CPU)):
        cosine = float((P * other).sum() / (P.norm() * other.norm()))
        assert abs(cosine) < 0.03
    seeds = {mix_seed(base, index) for base in range(30) for index in range(300)}
    assert len(seeds) == 30 * 300


@pytest.mark.parametrize("limit", [0, 4 * 8 * 16, 1 << 20])
def test_a_cache_of_any_size_gives_the_same_matrices(limit: int) -> None:
    cache = ProjectionCache(limit)
    for period in (0, 0, 1, 0):
        for seed in (5, 6, 7):
            found = cache.get(seed, period, 8, 16, torch.float32, CPU)
            assert torch.equal(found, projection(seed, period, 8, 16, CPU).T)
            assert cache.bytes <= limit
    assert cache.bytes == min(limit, 3 * 4 * 8 * 16)


def test_what_is_kept_is_not_drawn_again() -> None:
    cache = ProjectionCache()
    first = cache.get(5, 0, 8, 16, torch.bfloat16, CPU)
    assert cache.get(5, 0, 8, 16, torch.bfloat16, CPU) is first
    assert cache.get(5, 1, 8, 16, torch.bfloat16, CPU) is not first
    assert cache.bytes == 2 * 8 * 16


@pytest.mark.parametrize("rank", [1, 5, 40])
@pytest.mark.parametrize("stack", [(), (3,), (2, 3)])
@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_images_are_the_product(shape: tuple[int, int], stack: tuple[int, ...], rank: int) -> None:
    G = torch.randn(*stack, *shape, generator=torch.Generator().manual_seed(1))
    P = projection(1, 0, rank, 48, CPU)
    wide = shape[0] == 48
    wanted = (P.double() @ (G if wide else G.mT).double()).mT
    image = project(G, P.T.contiguous(), wide=wide)
    assert image.is_contiguous()
    assert torch.allclose(image.double(), wanted, atol=1e-4)


def test_products_in_bfloat16_are_exact_enough_for_norms() -> None:
    # Channels of very different size, and a common direction that dominates, as in a network.
    generator = torch.Generator().manual_seed(2)
    G = torch.randn(512, 768, generator=generator) + 3.0 * torch.randn(512, 1, generator=generator)
    G = G * torch.logspace(-9, 2, 768)
    P = projection(1, 0, 256, 512, CPU).T.contiguous()
    exact = project(G, P, wide=True).norm(dim=-1)
    rounded = project(G, P.to(torch.bfloat16), wide=True).norm(dim=-1)
    # The projection itself is off by 1/sqrt(2·256), 4%.
    assert float((rounded / exact - 1).abs().max()) < 2e-3


def test_small_and_thin_products_stay_in_float32() -> None:
    assert product_dtype(torch.zeros(100, 100), 64) == torch.float32
    assert product_dtype(torch.zeros(1024, 1024), 1) == torch.float32
    assert product_dtype(torch.zeros(1024, 1024, dtype=torch.float64), 64) == torch.float32
