"""Apollo: AdamW's step sizes from a random low-rank image of the gradient (arXiv 2412.05270)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from personality.manifests.errors import UsageError
from personality.vectors.meter import Survival
from personality.vectors.training.projections import ProjectionCache, mix_seed, product_dtype, project
from personality.vectors.training.sharded import Sharding, local, placed_like, sharding_of
from personality.vectors.training.weight_update import (
    REDUCED,
    MovementMeter,
    Rounding,
    add_update,
    check_rounding,
)

ScaleType = Literal["channel", "tensor"]

# Norms below this are treated as this, so that a vanishing gradient gives a vanishing step and not Inf.
_TINY_NORM = 1e-20
# Elements of a gradient handled at a time where a copy is needed: a few MB. Much smaller blocks would be many
# short parallel sections, each of which waits for the slowest thread.
_BLOCK = 1 << 21
# Elements of the images that are stepped together: many small matrices share their calls, large ones stand alone.
# Larger buckets were slower, since their images leave the cache before they are used again.
_BUCKET = 1 << 17


@dataclass
class _Matrices:
    """One parameter of matrices on its way through a step."""

    param: Tensor
    weight: Tensor  # its part on this process
    grad: Tensor  # as is the weight
    state: dict[str, Any]
    wide: bool  # rows <= columns: rows are projected
    size: int  # m, the projected dimension
    rank: int  # r <= m
    sharding: Sharding | None  # of the matrix itself; None if every matrix is whole on some process
    index: int  # position among all parameters


class Apollo(torch.optim.Optimizer):
    """AdamW's step sizes at a fraction of its memory (Zhu et al. 2024, arXiv 2412.05270, algorithm 1).

    A matrix W (m×n, seen so that m <= n) keeps Adam's two moments only for R = P·G (r×n), a random image
    of its gradient. How much Adam would scale a channel j of R is applied to the channel of G itself:

        R~ = Adam(R),  s_j = |R~_j| / |R_j|,  W <- W - lr·alpha·G·diag(s) - lr·weight_decay·W

    and the norm of the scaled gradient may grow from step to step by at most `norm_growth`. With
    `scale_type="tensor"` one s = |R~| / |R| serves the whole matrix; at rank 1 that is Apollo-Mini.

    **Why alpha = sqrt(m/r) is the default.** The entries of R~ have the size of Adam's steps, about c, so
    |R~_j| is about c·sqrt(r), and |R_j| is about |G_j| because P keeps lengths on average. The scaled
    channel G_j·s_j then has norm c·sqrt(r), while AdamW's has c·sqrt(m), for it has m entries of size c.
    The quotient sqrt(m/r) makes a learning rate mean the same at every rank; m is the dimension that is
    projected away (the smaller one; the paper's theorem calls it n) and r the rank after clamping.

    What has no matrix form (0-D and 1-D tensors, and those whose projected dimension is 1, such as depthwise
    convolutions) is stepped by AdamW without weight decay. Tensors of more than two dimensions are stacks
    of matrices over the last two (packed experts): each matrix has its own scaling and its own limiter.

    **State** of an m×n matrix: `exp_avg`, `exp_avg_sq` (float32, (..., n, r), n the longer dimension),
    `norm` (float32, one number a matrix) and `step`: the paper's 2nr + 2 numbers. P is a function of the base
    seed, which the group keeps, of the parameter's position and of the step; it is not part of the state.
    A state dict therefore loads with `weights_only=True`, and a run resumed from it goes on bit for bit.
    In memory projections are kept while they serve, up to 64 MiB; see `ProjectionCache` and `projection_bytes`.

    **Speed.** Where the processor multiplies bfloat16 natively, large gradients are projected in it; see
    `product_dtype`. Everything else is float32.

    **Processes.** Replicas (DDP) step alike by themselves. Parameters that `fully_shard` spread (FSDP2,
    HSDP) are stepped where they lie: images of shards are summed where rows are projected, norms are summed
    everywhere, and state is sharded like its parameter, so that distributed checkpoints can store it.

    Args:
        params: parameters or groups, as for every torch optimizer. Groups may set any option below.
        lr: learning rate, AdamW's scale.
        rank: r; clamped to the projected dimension.
        scale: alpha, or None for sqrt(m/r).
        scale_type: "channel" (Apollo) or "tensor" (Apollo-Mini, with rank=1).
        update_proj_gap: steps for which one P is used.
        betas: decay of the two moments.
        eps: added to Adam's denominator.
        weight_decay: decoupled, as in AdamW.
        norm_growth: gamma of the limiter; None switches it off.
        seed: base seed; parameter number i draws from a seed mixed of it and i.
        weights: how a step reaches bfloat16 and float16 parameters: "nearest" rounds and loses small steps,
            "compensated" keeps what rounding lost (one more number of the weights' dtype an element, in the
            state as `compensation`), "stochastic" rounds up or down at random. Others are not affected.

    Raises:
        UsageError: an option is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        rank: int = 256,
        scale: float | None = None,
        scale_type: ScaleType = "channel",
        *,
        update_proj_gap: int = 200,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        norm_growth: float | None = 1.01,
        seed: int = 0,
        weights: Rounding = "nearest",
    ) -> None:
        self._begin()
        super().__init__(
            params,
            {
                "lr": lr,
                "rank": rank,
                "scale": scale,
                "scale_type": scale_type,
                "update_proj_gap": update_proj_gap,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "norm_growth": norm_growth,
                "seed": seed,
                "weights": weights,
            },
        )

    def _begin(self) -> None:
        """What lives in memory only."""
        self._projections = ProjectionCache()
        self._movement = MovementMeter()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checking its options; its parameters are numbered after those already here.

        Args:
            param_group: "params" and options that differ from the defaults.

        Raises:
            UsageError: an option is outside its range.
        """
        super().add_param_group(param_group)
        _check_options(self.param_groups[-1])

    @property
    def projection_bytes(self) -> int:
        """Memory of the projections that are kept between steps; not part of the state."""
        return self._projections.bytes

    def survival(self) -> Survival:
        """How much of the movement of bfloat16 and float16 weights arrived.

        Returns:
            From the first step (or the loading of a state) to now, over all such parameters: the share of
            the elements meant to move that did, and the cosine of the way they went to the way they were meant
            to go. Estimated from a sample of the elements on this process; see `MovementMeter`.
        """
        return self._movement.result()

    def meter_state(self) -> dict[str, Tensor]:
        """What `survival` has to remember across a checkpoint; it is not part of the optimizer's state."""
        return self._movement.state([param for group in self.param_groups for param in group["params"]])

    def load_meter_state(self, state: Mapping[str, Tensor]) -> None:
        """Let `survival` go on from what `meter_state` returned.

        Args:
            state: of an optimizer over the same parameters.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        seeds = [group["seed"] for group in self.param_groups for _ in group["params"]]
        mixed = [mix_seed(seed, index) for index, seed in enumerate(seeds)]
        self._movement.load(params, mixed, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: evaluates the model again and returns the loss, or None.

        Returns:
            What the closure returned.

        Raises:
            UsageError: a parameter is sharded in a way that Apollo cannot step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        index = 0
        for group in self.param_groups:
            matrices: list[tuple[int, Tensor]] = []
            others: list[tuple[int, Tensor]] = []
            for param in group["params"]:
                if param.grad is not None:
                    (matrices if has_matrices(param) else others).append((index, param))
                index += 1
            for bucket in _buckets([self._gather(number, param, group) for number, param in matrices]):
                self._step_matrices(bucket, group)
            self._step_adam(others, group)
        return loss

    def _gather(self, index: int, param: Tensor, group: dict[str, Any]) -> _Matrices:
        """What a step needs to know of a parameter of matrices; its state is begun if there is none."""
        wide = param.shape[-2] <= param.shape[-1]
        size = min(param.shape[-2:])
        rank = min(group["rank"], size)
        sharding = sharding_of(param)
        weight, grad, stack = local(param), local(cast(Tensor, param.grad)), param.shape[:-2]
        state = self.state[param]
        if not state:
            whole = (*stack, max(param.shape[-2:]), rank)
            part = list(whole)
            if sharding is not None:
                start, stop = sharding.part(whole[0])
                part[0] = stop - start
            for name in ("exp_avg", "exp_avg_sq"):
                moment = torch.zeros(part, dtype=torch.float32, device=weight.device)
                state[name] = placed_like(param, moment, whole)
            norm = torch.zeros(weight.shape[:-2], dtype=torch.float32, device=weight.device)
            # Of a stack every process keeps its own matrices' norms; the norm of one matrix is known to all.
            state["norm"] = placed_like(param, norm, tuple(stack)) if stack else norm
            self._start(param, weight, group)
        return _Matrices(
            param,
            weight,
            grad.float() if grad.dtype == torch.float64 else grad,
            state,
            wide,
            size,
            rank,
            sharding if len(stack) == 0 else None,
            index,
        )

    def _start(self, param: Tensor, weight: Tensor, group: dict[str, Any]) -> None:
        """Begin the entries that every kind of parameter has."""
        state = self.state[param]
        state["step"] = 0
        if group["weights"] == "compensated" and weight.dtype in REDUCED:
            state["compensation"] = placed_like(param, torch.zeros_like(weight), tuple(param.shape))

    def _step_matrices(self, bucket: list[_Matrices], group: dict[str, Any]) -> None:
        """One step of parameters of matrices that have come equally far and are sharded alike."""
        sharding = bucket[0].sharding
        period = bucket[0].state["step"] // group["update_proj_gap"]
        # R has channels in its rows whichever side of W is projected.
        R = [self._image(each, period, group) for each in bucket]
        adapted = _adam(R, [each.state for each in bucket], group)

        alphas = [math.sqrt(each.size / each.rank) if group["scale"] is None else group["scale"] for each in bucket]
        if group["scale_type"] == "channel":
            factors = [
                _channel_factor(each, image, found).mul_(alpha)
                for each, image, found, alpha in zip(bucket, R, adapted, alphas, strict=True)
            ]
            # |alpha·G·S|, and so for the limiter.
            norms = _flat([_scaled_norm(each.grad, factor) for each, factor in zip(bucket, factors, strict=True)])
            if sharding is not None:
                norms = sharding.root_of_squares(norms)
        else:
            sides = [R, adapted, [each.grad for each in bucket]]
            three = torch.stack([_flat([_norm(matrices) for matrices in side]) for side in sides])
            if sharding is not None:
                three = sharding.root_of_squares(three)
            counts = [_matrices_in(each.weight) for each in bucket]
            alpha = torch.tensor(alphas, device=three.device).repeat_interleave(
                torch.tensor(counts, device=three.device), output_size=sum(counts)
            )
            scaling = three[1] / three[0].clamp_min(_TINY_NORM) * alpha
            norms = three[2] * scaling
            factors = _unflat(scaling, bucket)

        previous = _flat([local(each.state["norm"]) for each in bucket])
        allowed = _limit(norms, previous, group["norm_growth"])
        kept = torch.where(norms > 0, norms * allowed, previous)
        for each, factor, share, norm in zip(
            bucket, factors, _unflat(allowed, bucket), _unflat(kept, bucket), strict=True
        ):
            stored = local(each.state["norm"])
            stored.copy_(norm.reshape(stored.shape))
            self._apply(each, factor * share, group)

    def _image(self, each: _Matrices, period: int, group: dict[str, Any]) -> Tensor:
        """R of one parameter, float32 (..., n, r): of a sharded matrix the part that this process keeps."""
        seed = mix_seed(group["seed"], each.index)
        dtype = product_dtype(each.grad, each.rank)
        P = self._projections.get(seed, period, each.rank, each.size, dtype, each.weight.device)
        if each.sharding is None or not each.wide:
            return project(each.grad, P, wide=each.wide)
        # Each process has some of the rows that are projected: their images add up.
        start, stop = each.sharding.part(each.size)
        return each.sharding.sum_and_split(project(each.grad, P[start:stop], wide=True))

    def _apply(self, each: _Matrices, factor: Tensor, group: dict[str, Any]) -> None:
        """W <- W - lr·G·factor - lr·weight_decay·W."""
        weight, grad, lr, decay = each.weight, each.grad, group["lr"], group["weight_decay"]
        if weight.dtype not in REDUCED:
            if decay:
                weight.mul_(1.0 - lr * decay)
            weight.addcmul_(grad.to(weight.dtype), factor.to(weight.dtype), value=-lr)
            return
        where = self._movement.where(each.param, mix_seed(group["seed"], each.index))
        intended = grad[where] * factor.expand(grad.shape)[where]
        self._movement.add(each.param, intended.add_(weight[where], alpha=decay).mul_(-lr))
        add = self._rounding_adder(each.param, each.index, group)
        for rows in _blocks(weight):
            part = factor if factor.shape[0] == 1 else factor[rows]
            add(rows, (grad[rows] * part).add_(weight[rows], alpha=decay).mul_(-lr))

    def _step_adam(self, numbered: list[tuple[int, Tensor]], group: dict[str, Any]) -> None:
        """One step of Adam for tensors without a matrix in them."""
        for _, param in numbered:
            state = self.state[param]
            if not state:
                sharding_of(param)
                weight = local(param)
                for name in ("exp_avg", "exp_avg_sq"):
                    moment = torch.zeros_like(weight, dtype=torch.float32)
                    state[name] = placed_like(param, moment, tuple(param.shape))
                self._start(param, weight, group)
        alike: dict[tuple[int, torch.device], list[tuple[int, Tensor]]] = {}
        for index, param in numbered:
            alike.setdefault((self.state[param]["step"], param.device), []).append((index, param))
        for same in alike.values():
            grads = [local(cast(Tensor, param.grad)).float() for _, param in same]
            adapted = _adam(grads, [self.state[param] for _, param in same], group)
            for (index, param), found in zip(same, adapted, strict=True):
                weight = local(param)
                if weight.dtype not in REDUCED:
                    weight.add_(found, alpha=-group["lr"])
                    continue
                delta = found.mul_(-group["lr"])
                if weight.ndim:
                    self._movement.add(param, delta[self._movement.where(param, mix_seed(group["seed"], index))])
                self._rounding_adder(param, index, group)(..., delta)

    def _rounding_adder(self, param: Tensor, index: int, group: dict[str, Any]) -> Callable[[Any, Tensor], None]:
        """A function that adds float32 updates to parts of a parameter of reduced precision."""
        weight, compensation, generator = local(param), self.state[param].get("compensation"), None
        lost = None if compensation is None else local(compensation)
        if group["weights"] == "stochastic":
            # Alike on replicas and after resuming, unlike on shards.
            sharding = sharding_of(param)
            shard = 0 if sharding is None else sharding.rank
            seed = mix_seed(group["seed"], index, self.state[param]["step"], shard)
            generator = torch.Generator(device=weight.device).manual_seed(seed)

        def add(part: Any, delta: Tensor) -> None:
            kept = None if lost is None else lost[part]
            add_update(weight[part], delta, group["weights"], compensation=kept, generator=generator)

        return add

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, moments in float32 whatever the parameters' dtype.

        Args:
            state_dict: as saved; it is copied, not kept.
        """
        super().load_state_dict(state_dict)
        # torch casts loaded state to the parameter's dtype, which would round the moments of bf16 weights.
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for name, param in zip(names, params, strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                if torch.is_tensor(value):
                    self.state[param][key] = value.detach().to(device=param.device, copy=True)


def has_matrices(param: Tensor) -> bool:
    """Whether a tensor is stepped in its projected space: its last two dimensions are both above 1.

    Args:
        param: any shape.

    Returns:
        False for what Apollo hands to Adam.
    """
    return param.ndim >= 2 and min(param.shape[-2:]) > 1


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory that an optimizer's state takes on this process.

    Args:
        optimizer: any torch optimizer.

    Returns:
        Bytes of all its tensors, and 8 for each plain number.
    """
    total = 0
    for state in optimizer.state.values():
        for value in state.values():
            total += local(value).numel() * value.element_size() if torch.is_tensor(value) else 8
    return total


def _buckets(items: list[_Matrices]) -> Iterator[list[_Matrices]]:
    """Neighbors that may be stepped together.

    Sizes are those of whole images, not of the parts here, so that all processes form the same buckets.
    """
    bucket: list[_Matrices] = []
    filled = 0
    for each in items:
        first = bucket[0] if bucket else each
        alike = (
            each.sharding == first.sharding
            and each.weight.device == first.weight.device
            and each.state["step"] == first.state["step"]
        )
        size = each.state["exp_avg"].numel()
        if bucket and (not alike or filled + size > _BUCKET):
            yield bucket
            bucket, filled = [], 0
        bucket.append(each)
        filled += size
    if bucket:
        yield bucket


def _adam(values: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> list[Tensor]:
    """Update moments and step with `values` (float32); the bias-corrected quotients, same shapes."""
    first, second = group["betas"]
    if not values:
        return []
    step = states[0]["step"] + 1
    for state in states:
        state["step"] = step
    adapted = [torch.zeros_like(value) for value in values]
    # torch's own one-pass kernel; a step of rate -1 from 0 leaves the quotient itself.
    torch._fused_adamw_(
        adapted,
        values,
        [local(state["exp_avg"]) for state in states],
        [local(state["exp_avg_sq"]) for state in states],
        [],
        [torch.tensor(float(step), device=values[0].device)] * len(values),
        amsgrad=False,
        lr=-1.0,
        beta1=first,
        beta2=second,
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )
    return adapted


def _channel_factor(each: _Matrices, R: Tensor, adapted: Tensor) -> Tensor:
    """s_j = |R~_j| / |R_j| in a shape that multiplies the gradient on this process."""
    before = torch.linalg.vector_norm(R, dim=-1).clamp_min_(_TINY_NORM)
    scaling: Tensor = torch.linalg.vector_norm(adapted, dim=-1).div_(before)
    if not each.wide:
        return scaling.unsqueeze(-1)
    if each.sharding is not None:
        scaling = each.sharding.join(scaling, each.weight.shape[-1])
    return scaling.unsqueeze(-2)


def _norm(matrices: Tensor) -> Tensor:
    """Frobenius norm of each matrix, float32."""
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1), dtype=torch.float32)
    return norms


def _scaled_norm(grad: Tensor, factor: Tensor) -> Tensor:
    """|G·factor| of each matrix, without a second tensor of G's size."""
    if factor.shape[-1] == 1 and grad.ndim == 2:  # channels are rows
        norms = torch.linalg.vector_norm(grad, dim=-1, dtype=torch.float32) * factor.squeeze(-1)
    elif grad.numel() <= _BLOCK:
        return _norm(grad * factor)
    elif grad.ndim > 2:
        return torch.stack([_scaled_norm(matrix, part) for matrix, part in zip(grad, factor, strict=True)])
    else:
        norms = torch.stack([_norm(grad[rows] * factor) for rows in _blocks(grad)])
    return torch.sqrt(norms.square().sum())


def _blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first dimension with about `_BLOCK` elements each."""
    rows = tensor.shape[0]
    step = max(1, _BLOCK * rows // max(1, tensor.numel()))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _matrices_in(weight: Tensor) -> int:
    """Matrices that a tensor is a stack of."""
    return math.prod(weight.shape[:-2])


def _flat(values: list[Tensor]) -> Tensor:
    """One number a matrix, of all parameters, in one vector."""
    return torch.cat([value.reshape(-1) for value in values])


def _unflat(values: Tensor, bucket: list[_Matrices]) -> list[Tensor]:
    """Undo `_flat`, with two dimensions more, so that each number multiplies its matrix."""
    parts = torch.split(values, [_matrices_in(each.weight) for each in bucket])
    return [part.view(*each.weight.shape[:-2], 1, 1) for part, each in zip(parts, bucket, strict=True)]


def _limit(norm: Tensor, previous: Tensor, growth: float | None) -> Tensor:
    """Factor <= 1 that keeps each norm within `growth` times the one before (0: nothing came before)."""
    if growth is None:
        return torch.ones_like(norm)
    ceiling = previous * growth
    too_large = (previous > 0) & (norm > ceiling)
    return torch.where(too_large, ceiling / norm.clamp_min(_TINY_NORM), torch.ones_like(norm))


def _check_options(group: dict[str, Any]) -> None:
    """Refuse options that would only fail, or do harm, many steps later."""
    rules = {
        "lr": (group["lr"] >= 0, "zero or more"),
        "rank": (group["rank"] >= 1, "at least 1"),
        "scale": (group["scale"] is None or group["scale"] > 0, "above 0, or None for sqrt(m/r)"),
        "scale_type": (group["scale_type"] in ("channel", "tensor"), "`channel` or `tensor`"),
        "update_proj_gap": (group["update_proj_gap"] >= 1, "at least 1"),
        "betas": (all(0 <= beta < 1 for beta in group["betas"]), "two numbers in [0, 1)"),
        "eps": (group["eps"] > 0, "above 0"),
        "weight_decay": (group["weight_decay"] >= 0, "zero or more"),
        "norm_growth": (group["norm_growth"] is None or group["norm_growth"] >= 1, "at least 1, or None"),
    }
    check_rounding(group["weights"], {param.dtype for param in group["params"]})
    for name, (holds, expected) in rules.items():
        if not holds:
            raise UsageError(f"Apollo: {name} is {group[name]!r}", f"{name} must be {expected}")
