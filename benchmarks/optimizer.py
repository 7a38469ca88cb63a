"""One optimizer step on a 2048×5632 matrix: Apollo and Apollo-Mini against torch's AdamW.

`python -m benchmarks.optimizer`. Ratios are taken round by round, since the machine's speed drifts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.table import median, show
from personality.vectors.training.apollo import Apollo, state_bytes

_SHAPE = (2048, 5632)
_ROUNDS, _STEPS = 5, 6


def main() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(_SHAPE) * 1e-3
    kinds: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
        "AdamW (fused)": lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True),
        "AdamW (foreach)": lambda p: torch.optim.AdamW(p, lr=1e-5, foreach=True),
        "Apollo, rank 256": lambda p: Apollo(p, lr=1e-5, rank=256),
        "Apollo, rank 64": lambda p: Apollo(p, lr=1e-5, rank=64),
        "Apollo-Mini": lambda p: Apollo(p, lr=1e-5, rank=1, scale_type="tensor"),
    }
    optimizers = {}
    for name, make in kinds.items():
        parameter = torch.nn.Parameter(torch.randn(_SHAPE))
        parameter.grad = gradient.clone()
        optimizers[name] = make([parameter])
        optimizers[name].step()  # makes the state
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(_ROUNDS):
        for name, optimizer in optimizers.items():
            started = time.perf_counter()
            for _ in range(_STEPS):
                optimizer.step()
            times[name].append((time.perf_counter() - started) / _STEPS)
    fused = times["AdamW (fused)"]
    rows = [
        (
            name,
            f"{median(found) * 1e3:.1f}",
            f"{median([mine / peer for mine, peer in zip(found, fused, strict=True)]):.2f}×",
            f"{state_bytes(optimizers[name]) / 1e6:.1f}",
        )
        for name, found in times.items()
    ]
    title = (
        f"One step on {_SHAPE[0]}×{_SHAPE[1]} float32, {torch.get_num_threads()} threads (medians of {_ROUNDS} rounds)"
    )
    show(title, ["", "ms", "to fused AdamW", "state MB"], rows)


if __name__ == "__main__":
    main()
