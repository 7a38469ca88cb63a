from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.manifests.errors import IncompatibleError
from personality.vectors.meter import UpdateMeter


def measure(base: torch.Tensor, delta: torch.Tensor) -> UpdateMeter:
    meter = UpdateMeter()
    meter.add(base, delta)
    return meter


def test_small_updates_of_bfloat16_weights_are_mostly_lost() -> None:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(400, 300, generator=generator) * 0.02).to(torch.bfloat16)
    delta = torch.randn(400, 300, generator=generator) * 5e-6
    lost = measure(base, delta).result()
    assert lost.share_changed < 0.25
    assert lost.cosine < 0.6
    assert lost.cosine < 0.9
    kept = measure(base, delta * 1000).result()
    assert kept.share_changed > 0.95
    assert kept.cosine > 0.99
    assert kept.cosine > 0.9


def test_float32_weights_lose_nothing() -> None:
    base = torch.linspace(-1, 1, 50)
    result = measure(base, torch.full((50,), 1e-3)).result()
    assert result.share_changed == 1.0
    assert result.cosine == pytest.approx(1.0, abs=1e-6)


def test_figures_by_hand() -> None:
    # Around 1 bfloat16 has steps of 1/128: the first change is rounded away, the second rounded up.
    result = measure(torch.ones(3, dtype=torch.bfloat16), torch.tensor([1e-3, 6e-3, 0.0])).result()
    assert (result.elements, result.changed) == (2, 1)
    assert result.share_changed == 0.5
    assert result.cosine == pytest.approx(6e-3 / (1e-6 + 36e-6) ** 0.5, rel=1e-6)


def test_nothing_intended_and_nothing_arrived() -> None:
    base = torch.ones(4, dtype=torch.bfloat16)
    nothing = measure(base, torch.zeros(4)).result()
    assert (nothing.share_changed, nothing.cosine) == (1.0, 1.0)
    gone = measure(base, torch.full((4,), 1e-6)).result()
    assert (gone.share_changed, gone.cosine) == (0.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 60), scale=st.sampled_from([1e-5, 1e-3, 1e-1]))
def test_tensors_add_up_to_the_whole(cut: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(60, generator=generator).to(torch.bfloat16)
    delta = torch.randn(60, generator=generator) * scale
    whole = measure(base, delta).result()
    meter = UpdateMeter()
    meter.add(base[:cut].reshape(1, -1), delta[:cut].reshape(1, -1))
    meter.add(base[cut:], delta[cut:])
    parts = meter.result()
    assert (parts.elements, parts.changed) == (whole.elements, whole.changed)
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-12)
    assert -1.0 <= parts.cosine <= 1.0


def test_large_tensors_go_through_in_pieces() -> None:
    base = torch.ones((1 << 22) + 5, dtype=torch.bfloat16)
    result = measure(base, torch.full(base.shape, 1.0)).result()
    assert result.elements == result.changed == base.numel()


def test_shapes_must_agree() -> None:
    with pytest.raises(IncompatibleError, match=r"shape \(2, 3\) for a weight of shape \(3, 2\)"):
        measure(torch.ones(3, 2), torch.ones(2, 3))
