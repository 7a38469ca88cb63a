"""Keeping an optimizer from moving the weights along an unwanted direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from personality.manifests.errors import IncompatibleError, UsageError

_PEFT_PREFIX = "base_model.model."
_LEAST_REST = 1e-4
"""Least share of an update's squared norm that must be left for it to be stretched to its old length: below it the
update was all but parallel to the direction, and what is left is mostly rounding."""


class Avoidance:
    """Removes the component along a direction from what an optimizer's step really did to the weights.

    The update u = W_after - W_before is projected, not the gradient: Adam's and Apollo's scaling turns a gradient
    that is orthogonal to a direction into a step that is not. With D the direction over all its tensors, flattened into
    one vector,

        u' = u - max(0, <u, D>) / <D, D> · D       (one-sided; without max(0, ·) two-sided)

    so that every step, and with it the whole run, has <u', D> <= 0 (two-sided: = 0) up to rounding.

    **Why over all tensors at once.** Projecting each tensor alone is stricter (every tensor's inner product is then
    <= 0, hence their sum), but it forbids one dimension a tensor instead of one altogether, and removes movements
    that other tensors cancel. The tensors' shares of D are part of what the vector is, and one projection keeps
    them; it is the smallest change of the update after which the weights have not moved along the vector.

    **LoRA.** The factors' steps change a weight by s(B'A' - BA) = s(dB A_m + B_m dA), exactly, where A_m and B_m are
    the factors halfway between before and after. So <change, D> is the inner product of (dA, dB) with
    g = (s B_m^T D, s D A_m^T), and the component along g is removed in the factors' space. g moves with the factors; a
    second pass at the new halfway point leaves a residual of higher order in the part removed.

    **Rounding.** Weights are written in their own dtype, and a correction smaller than half a unit in a weight's last
    place is lost. With float32 that takes a rate near the end of its decay (measured: |cos_out| below 1e-6 at rates
    above 4e-5, 4e-3 at 2e-6); in bfloat16 it is the rule. `cos_out` is measured on the weights as written and shows it.

    **What to expect.** The weights do not move along D, but the loss may reach the same behavior by other ways.
    Measured on the playground, where a behavior was trained while a vector of that same behavior, from other
    examples, was avoided: the cosine of the whole movement with the vector fell from 0.84 to 0.00, the probability of
    the behavior only from 1.0 to 0.7 (0.7 also with every tensor projected alone, 1.0 with a random direction).

    Args:
        directions: float32 direction by name of a trained weight (`trained_weights`), of its shape. Others
            are ignored.
        model: the model as it is trained: which parameters require gradients is read now. Replicated weights (one
            process, or DDP) only; the optimizer must step these very parameters.
        one_sided: remove the component only when the update moves toward the direction.
        keep_magnitude: stretch what is left to the update's old norm, over all tensors that have a direction (with
            LoRA: over their factors).

    Attributes:
        cos_in: cosine of the last update with the direction as the optimizer made it, in the space of the weights over
            all tensors that have a direction; 0 for an update or a direction of norm 0.
        cos_out: after projection.
        names: weights that have a direction.

    Raises:
        IncompatibleError: no direction belongs to a trained weight, or one has another shape.
    """

    def __init__(
        self,
        directions: Mapping[str, Tensor],
        model: nn.Module,
        *,
        one_sided: bool = True,
        keep_magnitude: bool = False,
    ) -> None:
        self.one_sided = one_sided
        self.keep_magnitude = keep_magnitude
        self.cos_in = 0.0
        self.cos_out = 0.0
        weights = {name: weight for name, weight in _weights(model) if name in directions}
        if not weights:
            raise IncompatibleError(
                f"none of the {len(directions)} tensors of the direction to avoid is trained",
                "train what the vector changes (`--only`, `--layers`), or leave out `--avoid`",
            )
        for name, weight in weights.items():
            if tuple(directions[name].shape) != weight.shape:
                raise IncompatibleError(
                    f"the direction to avoid has the shape {list(directions[name].shape)} for `{name}`, which has "
                    f"{list(weight.shape)}",
                    "the vector to avoid must be of this base",
                )
            weight.direction = directions[name].to(weight.params[0].device, torch.float32)
        self.names = tuple(weights)
        self._weights = list(weights.values())
        self._norm = math.sqrt(sum(_dot(weight.direction, weight.direction) for weight in self._weights))
        # A direction that does not depend on the weights is gone after one pass.
        self._passes = 2 if any(isinstance(weight, _LowRank) for weight in self._weights) else 1
        self._before: list[list[Tensor]] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> AvoidanceHandle:
        """Project every step of an optimizer from now on.

        Args:
            optimizer: torch's own or a subclass (not a wrapper around one).

        Returns:
            A handle whose `remove()` ends it.

        Raises:
            UsageError: the optimizer steps other parameters than the model's (sharded copies).
        """
        stepped = {id(param) for group in optimizer.param_groups for param in group["params"]}
        missing = sum(id(param) not in stepped for weight in self._weights for param in weight.params)
        if missing:
            raise UsageError(
                f"the optimizer does not step {missing} of the parameters that have a direction to avoid",
                "`--avoid` works in one process or with replicated weights (DDP), not with sharded ones (FSDP)",
            )
        return AvoidanceHandle(
            optimizer.register_step_pre_hook(self._remember), optimizer.register_step_post_hook(self._project)
        )

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        self._before = [[param.detach().clone() for param in weight.params] for weight in self._weights]

    @torch.no_grad()
    def _project(self, *_: Any) -> None:
        self.cos_in = self._cosine()
        for _pass in range(self._passes):
            self._remove_component()
        self.cos_out = self._cosine()
        self._before = []  # as large as the weights; it is made anew for each step

    def _cosine(self) -> float:
        inner = square = 0.0
        for weight, before in zip(self._weights, self._before, strict=True):
            inner += weight.inner(before)
            square += weight.square(before)
        length = math.sqrt(square) * self._norm
        return inner / length if length > 0 else 0.0

    def _remove_component(self) -> None:
        inner = size = square = 0.0
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for weight, before in zip(self._weights, self._before, strict=True):
            parts.extend(zip(weight.params, before, weight.gradient(before), strict=True))
        for param, start, along in parts:
            update = param.float() - start.float()
            inner += _dot(update, along)
            size += _dot(along, along)
            square += _dot(update, update)
        if size == 0 or inner == 0 or (self.one_sided and inner < 0):
            return
        share = inner / size
        rest = square - share * inner
        stretch = math.sqrt(square / rest) if self.keep_magnitude and rest > _LEAST_REST * square else 1.0
        for param, start, along in parts:
            update = (param.float() - start.float()).sub_(along, alpha=share).mul_(stretch)
            param.copy_(update.add_(start))


@dataclass(frozen=True)
class AvoidanceHandle:
    """The two hooks that an avoidance has in an optimizer."""

    before: RemovableHandle
    after: RemovableHandle

    def remove(self) -> None:
        """Leave the optimizer's steps alone again; a second call does nothing."""
        self.before.remove()
        self.after.remove()


def trained_weights(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The weights that training moves, by the names that a checkpoint gives them.

    Args:
        model: of transformers, or wrapped by PEFT for LoRA.

    Returns:
        Shape by name: of each parameter that requires gradients, and of each weight whose LoRA factors do.
    """
    return {name: weight.shape for name, weight in _weights(model)}


class _Weight(ABC):
    """A weight that training moves. `before` are its parameters before the step.

    Args:
        params: what the optimizer steps.
        shape: of the weight.

    Attributes:
        direction: D, float32, of the weight's shape.
    """

    direction: Tensor

    def __init__(self, params: tuple[nn.Parameter, ...], shape: tuple[int, ...]) -> None:
        self.params = params
        self.shape = shape

    @abstractmethod
    def gradient(self, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Tensors g for `params` with <weight's change, D> = Σ <parameter's change, g>."""

    @abstractmethod
    def square(self, before: Sequence[Tensor]) -> float:
        """Squared norm of the weight's change."""

    def inner(self, before: Sequence[Tensor]) -> float:
        """<weight's change, D>."""
        return sum(
            _dot(now.float() - start.float(), along)
            for now, start, along in zip(self.params, before, self.gradient(before), strict=True)
        )


class _Dense(_Weight):
    """A weight that is a parameter itself."""

    def __init__(self, param: nn.Parameter) -> None:
        super().__init__((param,), tuple(param.shape))

    def gradient(self, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (self.direction,)

    def square(self, before: Sequence[Tensor]) -> float:
        update = self.params[0].float() - before[0].float()
        return _dot(update, update)


class _LowRank(_Weight):
    """A weight that changes by scaling · B A, with A (r, in) and B (out, r)."""

    def __init__(self, a: nn.Parameter, b: nn.Parameter, scaling: float, *, transposed: bool) -> None:
        shape = (b.shape[0], a.shape[1])
        super().__init__((a, b), shape[::-1] if transposed else shape)
        self.scaling = scaling
        self.transposed = transposed

    def gradient(self, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
        direction = self.direction.T if self.transposed else self.direction
        a, b = ((now.float() + start.float()) / 2 for now, start in zip(self.params, before, strict=True))
        return (self.scaling * (b.T @ direction), self.scaling * (direction @ a.T))

    def square(self, before: Sequence[Tensor]) -> float:
        # B'A' - BA = [dB, B] [A'; dA]: its norm from two Gram matrices (2r, 2r), without a tensor of the weight's size.
        a, b = (param.double() for param in self.params)
        a_before, b_before = (start.double() for start in before)
        left = torch.cat((b - b_before, b_before), dim=1)
        right = torch.cat((a, a - a_before), dim=0)
        return self.scaling**2 * _dot(left.T @ left, right @ right.T)


def _weights(model: nn.Module) -> Iterator[tuple[str, _Weight]]:
    """Every weight that training moves, with its name in a checkpoint."""
    factors: set[int] = set()
    for path, module in model.named_modules():
        lora_a: Any = getattr(module, "lora_A", None)
        base: Any = getattr(module, "base_layer", None)
        if lora_a is None or getattr(getattr(base, "weight", None), "ndim", 0) != 2:
            continue
        layer: Any = module
        for adapter in lora_a:
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            if a.requires_grad and b.requires_grad:
                factors.update((id(a), id(b)))
                transposed = bool(getattr(layer, "fan_in_fan_out", False))
                weight = _LowRank(a, b, float(layer.scaling[adapter]), transposed=transposed)
                yield f"{path.removeprefix(_PEFT_PREFIX)}.weight", weight
    for name, param in model.named_parameters():
        if param.requires_grad and id(param) not in factors:
            yield name.removeprefix(_PEFT_PREFIX).replace(".base_layer.", "."), _Dense(param)


def _dot(one: Tensor, other: Tensor) -> float:
    """Inner product, summed in float64: a float32 sum over millions of terms is off by more than the cosine's size."""
    return float((one * other).sum(dtype=torch.float64))
