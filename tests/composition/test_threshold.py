from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.composition.threshold import kth_in_bin, magnitude
from personality.vectors.magnitude_counter import MagnitudeCounter


def kth_largest_magnitude(blocks: Callable[[], list[Tensor]], k: int) -> float:
    """Counted, and counted more closely where the first histogram does not say it all."""
    counter = MagnitudeCounter()
    counter.begin("w", sum(block.numel() for block in blocks()))
    for block in blocks():
        counter.add(block)
    place = counter.result().kth_largest(["w"], k)
    return magnitude(place.pattern if place.exact else kth_in_bin(blocks(), place.pattern, k - place.above))


def reference(tensor: Tensor, k: int) -> float:
    """By sorting all of them."""
    ordered = tensor.float().abs().reshape(-1).sort(descending=True).values
    return float(ordered[k - 1])


def blocks_of(tensor: Tensor, size: int) -> list[Tensor]:
    flat = tensor.reshape(-1)
    return [flat[start : start + size] for start in range(0, len(flat), size)]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_equals_sorting(data: st.DataObject) -> None:
    values = data.draw(
        st.lists(
            st.one_of(
                st.floats(width=32, allow_nan=False, allow_infinity=False),
                st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38]),
            ),
            min_size=1,
            max_size=200,
        )
    )
    tensor = torch.tensor(values, dtype=torch.float32)
    k = data.draw(st.integers(1, len(values)))
    size = data.draw(st.integers(1, len(values)))
    assert kth_largest_magnitude(lambda: blocks_of(tensor, size), k) == reference(tensor, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 2, 999, 30_000, 60_000])
def test_equals_kthvalue_on_random_data(dtype: torch.dtype, k: int) -> None:
    tensor = torch.randn(60_000, generator=torch.Generator().manual_seed(3)).to(dtype)
    wanted = float(tensor.float().abs().kthvalue(len(tensor) - k + 1).values)
    assert kth_largest_magnitude(lambda: blocks_of(tensor, 7000), k) == wanted


@pytest.mark.parametrize("k", [1, 500, 501, 1000])
def test_many_ties(k: int) -> None:
    tensor = torch.cat([torch.full((500,), -2.5), torch.full((500,), 0.25)])
    assert kth_largest_magnitude(lambda: blocks_of(tensor, 64), k) == (2.5 if k <= 500 else 0.25)


def test_values_that_share_their_upper_bits() -> None:
    tensor = torch.arange(1, 4001, dtype=torch.int32).add(0x3F80 << 16).view(torch.float32)
    for k in (1, 17, 4000):
        assert kth_largest_magnitude(lambda: blocks_of(tensor, 333), k) == reference(tensor, k)


def test_subnormals_and_zeros() -> None:
    tensor = torch.tensor([0.0, -0.0, 1e-45, -3e-45, 1e-40, -1e-39])
    found = [kth_largest_magnitude(lambda: [tensor], k) for k in range(1, 7)]
    assert found == tensor.abs().sort(descending=True).values.tolist()
    assert found[0] > found[1] > found[2] > found[3] > 0.0


@pytest.mark.parametrize("k", [5, 100])
def test_more_than_there_are(k: int) -> None:
    with pytest.raises(ValueError, match=f"only 4 elements, not {k}"):
        kth_largest_magnitude(lambda: [torch.ones(4)], k)
