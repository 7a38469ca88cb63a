"""How a float32 update reaches weights of reduced precision, and how much of it arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from personality.manifests.errors import UsageError
from personality.vectors.meter import Survival, survival
from personality.vectors.training.sharded import local

Rounding = Literal["nearest", "compensated", "stochastic"]
"""What is done with the part of an update that a weight's dtype cannot hold."""

ROUNDINGS: Final[tuple[Rounding, ...]] = get_args(Rounding)
REDUCED: Final = (torch.bfloat16, torch.float16)
"""Dtypes in which small updates are lost."""

_SAMPLED = 4096  # elements of each parameter that the meter follows
_LOW_BITS = 1 << 16  # a float32 has 16 more bits than a bfloat16


def add_update(
    weight: Tensor,
    delta: Tensor,
    rounding: Rounding,
    *,
    compensation: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Add an update in place, computed in float32 and rounded once.

    A bfloat16 keeps 8 significant bits: a change below about 1/512 of the weight rounds to nothing, however
    often it is repeated. "compensated" carries what was lost to the next step (Kahan 1965; for the training
    of networks Zamirai et al. 2020, arXiv 2010.06192). "stochastic" rounds up or down with the probabilities
    that make the expected result exact (Gupta et al. 2015, arXiv 1502.02551), at the price of noise: a weight
    does a random walk around the exact value.

    Args:
        weight: bfloat16 or float16 ("stochastic": bfloat16), any shape.
        delta: float32, the same shape; not changed.
        rounding: see above; "nearest" loses small changes.
        compensation: for "compensated": what earlier steps lost, shape and dtype of `weight`, changed in place.
        generator: for "stochastic": source of randomness on the weight's device.
    """
    before = weight.float()
    if rounding == "compensated" and compensation is not None:
        wanted = delta + compensation
        weight.copy_(before + wanted)
        compensation.copy_(wanted.sub_(weight.float().sub_(before)))
        return
    exact = before + delta
    if rounding == "stochastic":
        # The upper half of a float32's bits is a bfloat16; a random lower half carries into it in proportion.
        bits = exact.view(torch.int32)
        bits.add_(random_bits(exact, generator)).bitwise_and_(-_LOW_BITS)
    weight.copy_(exact)


def random_bits(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Integers uniform in [0, 65536), int32, of the shape of `like`; four out of each 64-bit draw."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    words.random_(-(1 << 63), None, generator=generator)
    shorts = words.view(torch.int16)[: like.numel()].to(torch.int32)
    return shorts.bitwise_and_(_LOW_BITS - 1).view(like.shape)


def check_rounding(rounding: str, dtypes: set[torch.dtype]) -> None:
    """Refuse a rounding that is unknown, or that a dtype does not have.

    Args:
        rounding: as given by the user.
        dtypes: of the parameters.

    Raises:
        UsageError: it cannot be done.
    """
    if rounding not in ROUNDINGS:
        raise UsageError(
            f"Apollo: weights is {rounding!r}", f"weights must be one of {', '.join(f'`{name}`' for name in ROUNDINGS)}"
        )
    if rounding == "stochastic" and torch.float16 in dtypes:
        raise UsageError(
            "Apollo: stochastic rounding of float16 weights is not available",
            "use `compensated`, or keep the weights in bfloat16",
        )


@dataclass(frozen=True)
class _Sample:
    """Some elements of a parameter: where they are, what they were, what they were meant to gain since."""

    where: tuple[Tensor, ...]
    start: Tensor
    intended: Tensor


class MovementMeter:
    """Compares where weights of reduced precision went with where they were meant to go.

    What counts is the way from a run's start to its end, summed over its steps: compensated and stochastic
    rounding lose as much as plain rounding in any one step, but not in the sum. Following each element would
    take two more copies of the weights, so up to 4096 random elements of each parameter stand for the rest
    (of this process's shard, where a parameter is sharded). Figures begin with the first step seen.
    """

    def __init__(self) -> None:
        self._samples: dict[Tensor, _Sample] = {}

    def where(self, param: Tensor, seed: int) -> tuple[Tensor, ...]:
        """The elements of a parameter that are followed; must be asked for before it changes.

        Args:
            param: of at least one dimension.
            seed: draws the elements.

        Returns:
            Coordinates in the part on this process, one tensor a dimension, for indexing.
        """
        if param not in self._samples:
            weight = local(param)
            count = weight.numel()
            flat = torch.arange(min(count, _SAMPLED))
            if count > _SAMPLED:
                flat = torch.randint(count, (_SAMPLED,), generator=torch.Generator().manual_seed(seed))
            where = torch.unravel_index(flat.to(weight.device), weight.shape)
            start = weight[where].float()
            self._samples[param] = _Sample(where, start, torch.zeros_like(start))
        return self._samples[param].where

    def add(self, param: Tensor, delta: Tensor) -> None:
        """Note what one step was meant to change.

        Args:
            param: the parameter.
            delta: intended change of the elements at `where`, float32.
        """
        self._samples[param].intended.add_(delta)

    def state(self, params: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a checkpoint has to keep for the figures to go on: a few thousand numbers a parameter.

        Args:
            params: in an order that is the same when the state is loaded.
        """
        found = {}
        for index, param in enumerate(params):
            if param in self._samples:
                found[f"{index}.start"] = self._samples[param].start.cpu()
                found[f"{index}.intended"] = self._samples[param].intended.cpu()
        return found

    def load(self, params: Sequence[Tensor], seeds: Sequence[int], state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned.

        Args:
            params: in the same order.
            seeds: of each, as given to `where`.
            state: from `state`.
        """
        for index, (param, seed) in enumerate(zip(params, seeds, strict=True)):
            if f"{index}.start" in state:
                where = self.where(param, seed)
                start, intended = (
                    state[f"{index}.{name}"].to(param.device, copy=True) for name in ("start", "intended")
                )
                self._samples[param] = _Sample(where, start, intended)

    def result(self) -> Survival:
        """The figures so far.

        Returns:
            Over all parameters seen, samples extrapolated to the elements that they stand for; nothing seen
            counts as nothing intended.
        """
        elements = changed = dot = applied_sum = intended_sum = 0.0
        for param, sample in self._samples.items():
            weight = local(param.detach())
            stands_for = weight.numel() / max(1, sample.start.numel())
            applied = (weight[sample.where].float() - sample.start).double()
            intended = sample.intended.double()
            meant = intended != 0
            elements += stands_for * int(meant.sum())
            changed += stands_for * int((meant & (applied != 0)).sum())
            dot += stands_for * float(applied @ intended)
            applied_sum += stands_for * float(applied @ applied)
            intended_sum += stands_for * float(intended @ intended)
        return survival(round(elements), round(changed), dot, applied_sum, intended_sum)
