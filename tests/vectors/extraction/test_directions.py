from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.capture import pair_activations
from personality.vectors.extraction.denoising import output_subspaces
from personality.vectors.extraction.directions import METHODS, Method, extract_directions, fit_directions
from personality.vectors.extraction.reading import Reading, ReadPair
from personality.vectors.extraction.statistics import DifferenceStatistics, gather_statistics
from tests.conftest import ARCHITECTURES
from tests.tiny_readings import make_pairs, marked_pairs, tiny_model


def planted(pairs: int, strength: float, *, width: int = 40, seed: int = 0) -> tuple[Tensor, DifferenceStatistics]:
    """Texts that differ by a direction of varying length, within noise."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    topic = torch.randn(pairs, 1, width, generator=generator) * 3
    lengths = strength * torch.randn(pairs, 1, 1, generator=generator).abs()
    noise = torch.randn(2, pairs, 1, width, generator=generator) * 0.3
    statistics = DifferenceStatistics(1, width, samples=pairs)
    statistics.add(topic + lengths * direction + noise[0], topic + noise[1], sampled=range(pairs))
    return direction, statistics


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_finds_a_planted_direction(method: Method, sign: int) -> None:
    direction, statistics = planted(150, sign * 4.0)
    found = fit_directions(statistics, method)
    cosine = float(found.directions[0] @ direction) * sign
    assert cosine > (0.85 if method == "logistic" else 0.97)  # a probe also fits the noise
    assert float(found.gap[0]) == pytest.approx(cosine * 4 * (2 / torch.pi) ** 0.5, rel=0.15)
    assert found.pairs == 150 and found.method == method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_describes_the_pairs_of_any_model(method: Method, kind: str) -> None:
    model, pairs = tiny_model(kind), marked_pairs(12)
    found = extract_directions(model, pairs, method=method)
    ((rows, acts),) = list(pair_activations(model, pairs))
    assert len(rows) == 12
    torch.testing.assert_close(found.directions.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(found.strength, (acts[:, 0] - acts[:, 1]).mean(0).norm(dim=-1))
    projections = torch.einsum("nsld,ld->nsl", acts, found.directions).mean(0)
    torch.testing.assert_close(found.midpoint, projections.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.gap, projections[0] - projections[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.activation_norm, acts.norm(dim=-1).mean((0, 1)))
    assert bool((found.gap > 0).all()) and bool((found.gap <= found.strength + 1e-5).all())
    assert found.spectrum.shape == (3, 8) and bool((found.spectrum.sum(-1) <= 1 + 1e-5).all())
    assert bool((found.spectrum[:, 0] > 0.2).all())
    assert found.kept.tolist() == [1.0] * 3 and found.denoise is None
    if method == "mean":
        torch.testing.assert_close(found.gap, found.strength, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_swapping_the_sides_turns_the_direction_around(method: Method) -> None:
    model, pairs = tiny_model("qwen3"), marked_pairs(10)
    swapped = [ReadPair(pair.negative, pair.positive, pair.where) for pair in pairs]
    there, back = (extract_directions(model, given, method=method) for given in (pairs, swapped))
    torch.testing.assert_close(there.directions, -back.directions, atol=1e-4, rtol=0)
    torch.testing.assert_close(there.gap, back.gap, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_order_and_batches_change_nothing(method: Method) -> None:
    model, pairs = tiny_model("qwen3_5"), make_pairs(30)
    whole = extract_directions(model, pairs, method=method)
    turned = extract_directions(model, pairs[::-1], method=method, batch_tokens=60)
    torch.testing.assert_close(whole.directions, turned.directions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.midpoint, turned.midpoint, atol=1e-5, rtol=1e-5)


def test_one_pass_serves_every_method() -> None:
    model, pairs = tiny_model("llama"), marked_pairs(10)
    statistics = gather_statistics(model, pairs, samples=256)
    for method in METHODS:
        torch.testing.assert_close(
            fit_directions(statistics, method).directions, extract_directions(model, pairs, method=method).directions
        )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_denoised_directions_lie_in_the_output_weight(kind: str) -> None:
    model, pairs = tiny_model(kind), marked_pairs(12)
    plain, found = (extract_directions(model, pairs, denoise=m) for m in (None, 6))
    assert found.denoise == 6
    for layer, basis in enumerate(output_subspaces(model, 6)):
        projected = basis @ basis.T @ plain.directions[layer].double()
        torch.testing.assert_close(found.kept[layer].double(), projected.norm(), atol=1e-5, rtol=0)
        expected = (projected / projected.norm()).float()
        torch.testing.assert_close(found.directions[layer], expected, atol=1e-4, rtol=0)
    assert bool((found.kept < 0.95).all())
    torch.testing.assert_close(found.strength, plain.strength)
    all_of_it = extract_directions(model, pairs, denoise=32)
    torch.testing.assert_close(all_of_it.directions, plain.directions, atol=1e-5, rtol=0)


def test_a_layer_in_which_nothing_differs_has_no_direction() -> None:
    statistics = DifferenceStatistics(2, 6)
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 9, 2, 6, generator=generator)
    positive[:, 0] = negative[:, 0]
    statistics.add(positive, negative)
    found = fit_directions(statistics)
    assert not found.directions[0].any() and found.strength[0] == found.gap[0] == found.consistency[0] == 0
    assert float(found.directions[1].norm()) == pytest.approx(1)
    assert all(bool(getattr(found, name).isfinite().all()) for name in ("midpoint", "spectrum", "kept"))


def test_refuses_pairs_that_differ_nowhere() -> None:
    # The sides part behind the position that is read.
    pairs = [ReadPair(Reading((n, 5, 1), 1, 2), Reading((n, 5, 2), 1, 2), f"p:{n}") for n in range(4)]
    with pytest.raises(DataError, match="4 pairs, and their activations are alike in every layer"):
        extract_directions(tiny_model("llama"), pairs)


def test_refuses_an_unknown_method_and_a_probe_without_samples() -> None:
    wrong: Any = "median"
    with pytest.raises(UsageError, match="no method `median`"):
        extract_directions(tiny_model("llama"), marked_pairs(4), method=wrong)
    statistics = gather_statistics(tiny_model("llama"), marked_pairs(4))
    with pytest.raises(UsageError, match="one by one"):
        fit_directions(statistics, "logistic")


def test_directions_can_be_trained_through() -> None:
    found = extract_directions(tiny_model("llama"), marked_pairs(4))
    x = torch.randn(32, requires_grad=True)
    (x * found.directions[0]).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
