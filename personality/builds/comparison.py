"""Comparing two models in memory by what they predict, and two tensors by their last bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ROWS, _LENGTH = 4, 32


def probe_tokens(vocabulary: int) -> Tensor:
    """Token ids (4, 32) that any model can be asked about: random, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (_ROWS, _LENGTH), generator=generator)


@torch.inference_mode()
def log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """Log-probabilities (rows, positions, vocabulary) in float32 on the CPU."""
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return logits.float().log_softmax(-1).cpu()


@dataclass(frozen=True)
class Agreement:
    """How nearly two models predict the same.

    Attributes:
        greatest_difference: largest |Δ log-probability|, nats.
        greedy: share of positions with the same most likely token, 0 to 1.
        positions: how many positions were compared.
    """

    greatest_difference: float
    greedy: float
    positions: int


def agreement(first: Tensor, second: Tensor) -> Agreement:
    """Compare two results of `log_probabilities`."""
    same = first.argmax(-1) == second.argmax(-1)
    difference = float((first - second).abs().max())
    if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        difference = float("inf")
    return Agreement(difference, float(same.float().mean()), same.numel())


def greatest_ulps(first: Tensor, second: Tensor) -> int:
    """Largest distance of two tensors of one floating dtype in units in the last place.

    Floats of one sign order like their bit patterns; mapping negatives to the other side of zero makes the whole line
    evenly spaced.
    """
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[first.element_size()]

    def line(tensor: Tensor) -> Tensor:
        bits = tensor.contiguous().view(integer).to(torch.int64)
        lowest = torch.iinfo(integer).min
        return torch.where(bits < 0, lowest - bits, bits)

    if not first.numel():
        return 0
    a, b = line(first), line(second)
    distance = torch.where(a > b, a - b, b - a)
    # 64-bit floats far apart overflow to a negative distance.
    return int(torch.where(distance < 0, torch.iinfo(torch.int64).max, distance).max())
