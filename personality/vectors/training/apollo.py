"""Apollo: AdamW's step sizes from a random low-rank image of the gradient (arXiv 2412.05270)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from personality.manifests.errors import UsageError

ScaleType = Literal["channel", "tensor"]

# Norms below this are treated as this, so that a vanishing gradient gives a vanishing step and not Inf.
_TINY_NORM = 1e-20
_MASK_64 = (1 << 64) - 1


def mix_seed(*parts: int) -> int:
    """One well-spread 63-bit seed out of several integers (SplitMix64's finalizer, folded).

    Neighboring parameters and periods have neighboring numbers; without mixing, generators seeded with
    them would give correlated projections on some devices.

    Args:
        parts: any integers, for example base seed, index of a parameter, number of a period.

    Returns:
        An integer in [0, 2**63), the same on every machine.
    """
    state = 0
    for part in parts:
        state = (state + (part & _MASK_64) + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state >> 1


def projection(seed: int, period: int, rank: int, size: int, device: torch.device) -> Tensor:
    """The random matrix P of one period, drawn afresh from its seed whenever it is needed.

    Args:
        seed: the parameter's own seed.
        period: number of the period, step // update_proj_gap.
        rank: r, rows of P.
        size: m, columns of P.
        device: where the parameter lives. Generators differ between kinds of device, so the same seed
            gives another (equally good) P on a GPU than on a CPU.

    Returns:
        float32 (r, m) with independent entries from N(0, 1/r), so that E|Pg|^2 = |g|^2.
    """
    generator = torch.Generator(device=device).manual_seed(mix_seed(seed, period))
    drawn = torch.randn(rank, size, generator=generator, device=device, dtype=torch.float32)
    return drawn.mul_(1.0 / math.sqrt(rank))


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

    State of a parameter: `step`, `seed` (integers), `exp_avg`, `exp_avg_sq` (float32, (..., r, n), where n
    is the longer dimension), `norm` (float32, one number a matrix). P is never stored. A state dict
    therefore loads with `weights_only=True`, and a run resumed from it goes on bit for bit.

    Args:
        params: parameters or groups, as for every torch optimizer. Groups may set any option below
            except `seed`.
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
    ) -> None:
        self._seed = seed
        self._index: dict[Tensor, int] = {}
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
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checking its options; its parameters are numbered after those already here.

        Args:
            param_group: "params" and options that differ from the defaults.

        Raises:
            UsageError: an option is outside its range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check_options(group)
        for param in group["params"]:
            self._index[param] = len(self._index)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: evaluates the model again and returns the loss, or None.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if has_matrices(param):
                    self._step_matrices(param, group)
                else:
                    self._step_adam(param, group)
        return loss

    def _step_matrices(self, param: Tensor, group: dict[str, Any]) -> None:
        """One step of a tensor of matrices, (..., rows, columns)."""
        grad = cast(Tensor, param.grad).float()
        wide = param.shape[-2] <= param.shape[-1]
        size = min(param.shape[-2:])
        rank = min(group["rank"], size)
        state = self.state[param]
        if not state:
            self._start(param)
            moments = (*param.shape[:-2], rank, max(param.shape[-2:]))
            state["exp_avg"] = torch.zeros(moments, dtype=torch.float32, device=param.device)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
            state["norm"] = torch.zeros(param.shape[:-2], dtype=torch.float32, device=param.device)
        period = state["step"] // group["update_proj_gap"]
        state["step"] += 1

        P = projection(state["seed"], period, rank, size, param.device)
        # R has channels in its last dimension whichever side of W is projected.
        R = P @ grad if wide else P @ grad.transpose(-2, -1)
        adapted = _adam(R, state, group["betas"], group["eps"])

        channels: tuple[int, ...] = (-2,) if group["scale_type"] == "channel" else (-2, -1)
        before = torch.linalg.vector_norm(R, dim=channels, keepdim=True).clamp_min_(_TINY_NORM)
        scaling = torch.linalg.vector_norm(adapted, dim=channels, keepdim=True).div_(before)
        alpha = math.sqrt(size / rank) if group["scale"] is None else group["scale"]
        scaling = scaling.mul_(alpha)
        if not wide:
            scaling = scaling.transpose(-2, -1)

        # |alpha·G·S| from the norms of G's channels: no second tensor of W's size is made.
        along: tuple[int, ...] = channels if wide or len(channels) == 2 else (-1,)
        norms = torch.linalg.vector_norm(grad, dim=along, keepdim=True)
        norm = torch.linalg.vector_norm(norms * scaling, dim=(-2, -1))
        allowed = _limit(norm, state["norm"], group["norm_growth"])
        state["norm"] = torch.where(norm > 0, norm * allowed, state["norm"])

        if group["weight_decay"]:
            param.mul_(1.0 - group["lr"] * group["weight_decay"])
        factor = (scaling * allowed[..., None, None]).to(param.dtype)
        param.addcmul_(grad.to(param.dtype), factor, value=-group["lr"])

    def _step_adam(self, param: Tensor, group: dict[str, Any]) -> None:
        """One step of Adam for a tensor without a matrix in it."""
        grad = cast(Tensor, param.grad).float()
        state = self.state[param]
        if not state:
            self._start(param)
            state["exp_avg"] = torch.zeros_like(param, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(param, dtype=torch.float32)
        state["step"] += 1
        adapted = _adam(grad, state, group["betas"], group["eps"])
        param.add_(adapted.to(param.dtype), alpha=-group["lr"])

    def _start(self, param: Tensor) -> None:
        """Begin the state of a parameter with the entries that every kind has."""
        self.state[param]["step"] = 0
        self.state[param]["seed"] = mix_seed(self._seed, self._index[param])

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
                    self.state[param][key] = value.detach().to(device=param.device, dtype=torch.float32, copy=True)


def has_matrices(param: Tensor) -> bool:
    """Whether a tensor is stepped in its projected space: its last two dimensions are both above 1.

    Args:
        param: any shape.

    Returns:
        False for what Apollo hands to Adam.
    """
    return param.ndim >= 2 and min(param.shape[-2:]) > 1


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory that an optimizer's state takes.

    Args:
        optimizer: any torch optimizer.

    Returns:
        Bytes of all its tensors, and 8 for each plain number.
    """
    total = 0
    for state in optimizer.state.values():
        for value in state.values():
            total += value.numel() * value.element_size() if torch.is_tensor(value) else 8
    return total


def _adam(value: Tensor, state: dict[str, Any], betas: tuple[float, float], eps: float) -> Tensor:
    """Update both moments with `value` (float32) and return the bias-corrected quotient, same shape."""
    first, second = betas
    step = state["step"]
    state["exp_avg"].lerp_(value, 1.0 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(value, value, value=1.0 - second)
    denominator = state["exp_avg_sq"].sqrt().div_(math.sqrt(1.0 - second**step)).add_(eps)
    return cast(Tensor, (state["exp_avg"] / denominator).div_(1.0 - first**step))


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
    for name, (holds, expected) in rules.items():
        if not holds:
            raise UsageError(f"Apollo: {name} is {group[name]!r}", f"{name} must be {expected}")
