from __future__ import annotations

import itertools
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.errors import DataError
from personality.vectors.extraction.statistics import DifferenceStatistics, by_digest, gather_statistics, pair_digest
from tests.tiny_readings import make_pairs, tiny_model


def drawn(pairs: int, layers: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, pairs, layers, width, generator=generator)
    return both[0] + 0.5, both[1] * 2


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.integers(2, 30),
    layers=st.integers(1, 3),
    width=st.integers(1, 12),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    seed=st.integers(0, 99),
)
def test_in_parts_as_all_at_once(pairs: int, layers: int, width: int, cuts: list[int], seed: int) -> None:
    positive, negative = drawn(pairs, layers, width, seed)
    statistics = DifferenceStatistics(layers, width, rank=40)
    edges = [0, *(edge for edge in itertools.accumulate(cuts) if edge < pairs), pairs]
    for first, last in itertools.pairwise(edges):
        statistics.add(positive[first:last], negative[first:last])
    assert statistics.pairs == pairs
    P, N = positive.double(), negative.double()
    D = P - N
    close(statistics.mean_positive, P.mean(0))
    close(statistics.mean_negative, N.mean(0))
    close(statistics.mean_difference, D.mean(0))
    close(statistics.activation_norm, torch.cat([P, N]).norm(dim=-1).mean(0))
    units = D / D.norm(dim=-1, keepdim=True)
    cosines = torch.stack([(units[i] * units[j]).sum(-1) for i, j in itertools.combinations(range(pairs), 2)])
    close(statistics.consistency, cosines.mean(0))
    for layer in range(layers):
        values = torch.linalg.svdvals(D[:, layer]) ** 2
        shares = torch.zeros(8, dtype=torch.float64)
        shares[: min(8, len(values))] = (values / values.sum())[:8]
        close(statistics.spectrum(8)[layer], shares)


def test_differences_within_rounding_have_no_direction() -> None:
    base = torch.randn(6, 1, 8)
    other = base.clone()
    other[0] += 1.0
    other[1:] *= 1 + 1e-7
    statistics = DifferenceStatistics(1, 8)
    statistics.add(other, base)
    assert statistics.consistency.tolist() == [0.0]  # only one pair differs, so no two can be compared
    same = DifferenceStatistics(1, 8)
    same.add(other[1:], base[1:])
    assert not same.mean_difference.any()
    assert same.spectrum(3).shape == (1, 3)


def test_memory_is_the_same_for_any_number_of_pairs() -> None:
    sizes = []
    for blocks in (2, 40):
        statistics = DifferenceStatistics(2, 96, rank=8, samples=16)
        tracemalloc.start()
        for seed in range(blocks):
            positive, negative = drawn(8, 2, 96, seed)
            statistics.add(positive, negative, sampled=range(8))
        sizes.append((statistics.kept_bytes, tracemalloc.get_traced_memory()[0]))
        tracemalloc.stop()
        assert statistics.sample.shape == (16, 2, 96)
    (few, few_objects), (many, many_objects) = sizes
    assert few == many <= 2 * 96 * (4 * 8 + 4 * 2 * 8 + 4 * 16)
    assert many_objects < few_objects + 20_000


def test_gathering_does_not_depend_on_order_or_batches() -> None:
    model, pairs = tiny_model("qwen3_5"), make_pairs(70)
    whole = gather_statistics(model, pairs, samples=9)
    turned = gather_statistics(model, pairs[::-1], samples=9, batch_tokens=100)
    close(whole.mean_difference, turned.mean_difference)
    close(whole.consistency, turned.consistency)
    close(whole.spectrum(8), turned.spectrum(8))
    close(whole.sample, turned.sample)
    assert whole.sample.shape == (9, 3, 32)


def test_all_pairs_are_sampled_when_there_is_room() -> None:
    statistics = gather_statistics(tiny_model("llama"), make_pairs(5), samples=256)
    close(statistics.sample.double().mean(0), statistics.mean_difference)
    assert statistics.sample.shape[0] == 5


def test_the_sample_is_spread_over_the_pairs() -> None:
    pairs = make_pairs(400)
    chosen = by_digest(pairs, seed=0)[:100]
    lengths = [len(pair.positive.ids) for pair in pairs]
    mean = sum(lengths) / 400
    assert abs(sum(lengths[index] for index in chosen) / 100 - mean) < 2
    assert 30 < sum(index < 200 for index in chosen) < 70
    assert chosen != by_digest(pairs, seed=1)[:100]


def test_digests_are_of_tokens_and_positions() -> None:
    first, second = make_pairs(2)
    assert pair_digest(first, 0) != pair_digest(second, 0)
    moved = type(first)(first.positive, first.negative, "elsewhere")
    assert pair_digest(first, 0) == pair_digest(moved, 0)
    swapped = type(first)(first.negative, first.positive, first.where)
    assert pair_digest(first, 0) != pair_digest(swapped, 0)


def test_a_direction_needs_two_pairs() -> None:
    with pytest.raises(DataError, match="1 pairs: a direction needs at least 2"):
        gather_statistics(tiny_model("llama"), make_pairs(1))
