"""How the steering of two versions differs, and how directions in one layer relate."""

from __future__ import annotations

import pytest
import torch

from personality.composition.steering_diff import interference, steering_diff
from personality.vectors.steering.injection import Injection

EAST, NORTH = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def test_each_layer_and_place_is_compared_with_all_vectors_together() -> None:
    before = [Injection(1, EAST, "all", "add", label="a@1"), Injection(2, EAST, "decision", "add", label="a@1")]
    after = [
        Injection(1, EAST, "all", "add", label="a@1"),
        Injection(1, NORTH, "all", "add", label="b@1"),
        Injection(3, NORTH * 3, "all", "add", label="b@1"),
    ]
    one, two, three = steering_diff(before, after)
    assert (one.layer, one.norm_before, one.norm_change) == (1, 1.0, 1.0)
    assert one.norm_after == pytest.approx(2**0.5)
    assert one.cosine == pytest.approx(0.5**0.5)
    assert (two.layer, two.positions, two.norm_after, two.norm_change, two.cosine) == (2, "decision", 0.0, 1.0, None)
    assert (three.layer, three.norm_before, three.norm_after) == (3, 0.0, 3.0)
    assert steering_diff([], []) == []


def test_interference_is_the_cosine_where_two_behaviors_meet() -> None:
    items = [
        Injection(1, EAST, "all", "add", label="warm@1"),
        Injection(1, -EAST - NORTH, "decision", "add", label="candid@2"),
        Injection(2, NORTH, "all", "add", label="warm@1"),
    ]
    (found,) = interference(items)
    assert (found.first, found.second, found.layer) == ("candid@2", "warm@1", 1)
    assert found.cosine == pytest.approx(-(0.5**0.5))
