"""Time and memory of one optimizer step: Apollo and Apollo-Mini against torch's AdamW and apollo-torch 1.0.3.

`python -m benchmarks.optimizer`. All take turns in one process and ratios are taken round by round, since the
machine's speed drifts. apollo-torch is a peer for timing only (its licence is non-commercial, and it needs
bitsandbytes to import); it takes part if it is installed:

    python -m venv /tmp/peer && /tmp/peer/bin/pip install -e . && /tmp/peer/bin/pip install apollo-torch==1.0.3
    /tmp/peer/bin/python -m benchmarks.optimizer
"""

from __future__ import annotations

import contextlib
import importlib
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.table import median, show
from personality import playground
from personality.vectors.training.apollo import Apollo, has_matrices, state_bytes
from personality.vectors.training.weight_update import ROUNDINGS, Rounding

_ROUNDS = 7
_LLAMA = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
Parameters = list[torch.nn.Parameter]


def main() -> None:
    peer = _peer()
    if peer is None:
        print("\napollo-torch is not installed here; its rows are left out. See the top of benchmarks/optimizer.py.")
    llama = LlamaForCausalLM(LlamaConfig(**_LLAMA, num_attention_heads=8, num_key_value_heads=8))
    models: list[tuple[str, Sequence[torch.Size], int]] = [
        ("a 2048×5632 matrix", [torch.Size((2048, 5632))], 4),
        ("a Llama of 30M parameters", [p.shape for p in llama.parameters()], 2),
        ("the playground's base, 0.5M parameters", _playground_shapes(), 40),
    ]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, shapes, steps in models:
            _table(f"One step on {name}, float32, {threads} thread{'s'[: threads - 1]}", shapes, steps, peer)
    torch.set_num_threads(1)
    _reduced_table()


def _reduced_table() -> None:
    """Apollo on bfloat16 weights: time, memory, and how much of 200 small steps arrives."""
    shape, generator = (2048, 5632), torch.Generator().manual_seed(0)
    start = (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
    steady = torch.randn(shape, generator=generator)
    rows = []
    kinds: list[tuple[str, torch.dtype, Rounding]] = [("float32", torch.float32, "nearest")]
    kinds += [(f"bfloat16, {rounding}", torch.bfloat16, rounding) for rounding in ROUNDINGS]
    for name, dtype, rounding in kinds:
        parameter = torch.nn.Parameter(start.to(dtype))
        parameter.grad = steady.to(dtype)
        optimizer = Apollo([parameter], lr=1e-5, weights=rounding)
        times = []
        for _ in range(200):
            started = time.perf_counter()
            optimizer.step()
            times.append(time.perf_counter() - started)
        arrived = optimizer.survival()
        held = state_bytes(optimizer) + parameter.numel() * parameter.element_size()
        shown = (f"{arrived.share_changed:.2f}", f"{arrived.cosine:.3f}") if arrived.elements else ("", "")
        rows.append((name, f"{median(times) * 1e3:.1f}", f"{held / 1e6:.1f}", *shown))
    columns = ["weights", "ms", "weights and state MB", "share changed", "cosine"]
    show("Apollo, rank 256, on a 2048×5632 matrix of N(0, 0.02), 200 steps of lr 1e-5, 1 thread", columns, rows)


def _table(title: str, shapes: Sequence[torch.Size], steps: int, peer: Any) -> None:
    kinds: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
        "AdamW (fused)": lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True),
        "AdamW (foreach)": lambda p: torch.optim.AdamW(p, lr=1e-5, foreach=True),
        "Apollo, rank 256": lambda p: Apollo(p, lr=1e-5, rank=256),
        "Apollo, rank 64": lambda p: Apollo(p, lr=1e-5, rank=64),
        "Apollo-Mini": lambda p: Apollo(p, lr=1e-5, rank=1, scale_type="tensor"),
    }
    if peer is not None:
        kinds["apollo-torch, rank 256"] = lambda p: peer(_peer_groups(p, 256, "channel"), lr=1e-5)
        kinds["apollo-torch, Mini"] = lambda p: peer(_peer_groups(p, 1, "tensor"), lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, generator=generator) * 1e-3 for shape in shapes]
    optimizers = {}
    for name, make in kinds.items():
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizers[name] = make(parameters)
        optimizers[name].step()  # makes the state
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(_ROUNDS):
        for name, optimizer in optimizers.items():
            started = time.perf_counter()
            for _ in range(steps):
                optimizer.step()
            times[name].append((time.perf_counter() - started) / steps)
    rows = []
    for name, optimizer in optimizers.items():
        theirs = "apollo-torch, Mini" if "Mini" in name else "apollo-torch, rank 256"
        kept = optimizer.projection_bytes if isinstance(optimizer, Apollo) else 0
        against = _ratio(times[name], times.get(theirs)) if name in ("Apollo, rank 256", "Apollo-Mini") else ""
        rows.append(
            (
                name,
                f"{median(times[name]) * 1e3:.2f}",
                _ratio(times[name], times["AdamW (fused)"]),
                against,
                f"{state_bytes(optimizer) / 1e6:.2f}",
                f"{kept / 1e6:.2f}" if isinstance(optimizer, Apollo) else "",
            )
        )
    columns = ["", "ms", "to fused AdamW", "to apollo-torch", "state MB", "kept projections MB"]
    show(f"{title} (medians of {_ROUNDS} rounds)", columns, rows)


def _ratio(mine: list[float], peer: list[float] | None) -> str:
    return "" if peer is None else f"{median([a / b for a, b in zip(mine, peer, strict=True)]):.2f}×"


def _playground_shapes() -> list[torch.Size]:
    config = AutoConfig.from_pretrained(Path(playground.__file__).with_name("base"))
    return [p.shape for p in AutoModelForCausalLM.from_config(config).parameters()]


def _peer() -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module("apollo_torch").APOLLOAdamW
    except ImportError:
        return None


def _peer_groups(parameters: Parameters, rank: int, scale_type: str) -> list[dict[str, Any]]:
    """As its documentation says: matrices with a rank, all others without."""
    matrices = [p for p in parameters if has_matrices(p)]
    others = [p for p in parameters if not has_matrices(p)]
    options = {"rank": rank, "scale_type": scale_type, "scale": 128.0 if rank == 1 else 1.0}
    projected = {"params": matrices, "proj": "random", "proj_type": "std", "update_proj_gap": 200, **options}
    return [projected, *([{"params": others}] if others else [])]


if __name__ == "__main__":
    main()
