"""What layers add to the tokens of a batch, and who holds which slot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from personality.manifests.steering_record import Positions
from personality.serving.plugin.model_steering import ModelSteering
from personality.serving.plugin.token_rows import rows_of
from personality.serving.steering_table import table_of
from personality.vectors.steering.injection import Injection


def injection(layer: int, value: float, positions: Positions = "all") -> Injection:
    return Injection(layer, torch.full((4,), value), positions, "add", label="candid@1")


def test_rows_of_whole_and_partial_prompts() -> None:
    # Slots 0, 2, 1: a whole prompt of 3; tokens 2-4 of a prompt of 4 with a reply; one token of a reply.
    rows = rows_of(torch.tensor([0, 2, 1]), torch.tensor([0, 2, 9]), torch.tensor([3, 4, 5]), torch.tensor([3, 3, 1]))
    assert rows.tolist() == [1, 1, 2, 7, 8, 9, 6]


def model_steering(positional: bool = True) -> tuple[ModelSteering, dict[int, nn.Module]]:
    layers: dict[int, nn.Module] = {0: nn.Identity(), 1: nn.Identity()}
    found = ModelSteering(layers, 2, 4, torch.float32, torch.device("cpu"), tokens=8, slots=2, positional=positional)
    return found, layers


def test_layers_add_what_was_scheduled() -> None:
    steering, layers = model_steering()
    steering.set("", table_of([injection(0, 1), injection(0, 4, "response")], 2, 4))
    steering.set("warm", table_of([injection(1, 7, "decision")], 2, 4))
    numbers = torch.tensor
    steering.schedule(["", "warm"], numbers([0, 1]), numbers([2, 2]), numbers([3, 2]))
    hidden = torch.zeros(8, 4)
    assert layers[0](hidden)[:, 0].tolist() == [1, 5, 5, 0, 0, 0, 0, 0]
    assert layers[1](hidden)[:, 0].tolist() == [0, 0, 0, 7, 0, 0, 0, 0]
    steering.schedule([""], numbers([5]), numbers([2]), numbers([1]))
    assert layers[0](hidden[None])[0, :, 0].tolist() == [5, 0, 0, 0, 0, 0, 0, 0]
    steering.clear("")
    assert layers[0](hidden).any().item() is False
    assert [*steering.describe()["slots"]] == ["warm"]


def test_slots_are_limited_and_given_free() -> None:
    steering, layers = model_steering()
    steering.set("warm", table_of([injection(0, 3)], 2, 4))
    with pytest.raises(ValueError, match="all slots are taken"):
        steering.set("cold", table_of([], 2, 4))
    steering.clear("warm")
    steering.set("cold", table_of([], 2, 4))
    steering.schedule(["cold"], torch.tensor([0]), torch.tensor([1]), torch.tensor([1]))
    assert not layers[0](torch.zeros(8, 4)).any()
    with pytest.raises(KeyError):
        steering.schedule(["warm"], torch.tensor([0]), torch.tensor([1]), torch.tensor([1]))


def test_positions_are_refused_where_the_cache_does_not_know_them() -> None:
    steering, _ = model_steering(positional=False)
    steering.set("", table_of([injection(0, 1)], 2, 4))
    with pytest.raises(ValueError, match="PERSONA_STEERING=positions"):
        steering.set("", table_of([injection(0, 1, "decision")], 2, 4))
