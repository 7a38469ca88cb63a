"""Loss curves of AdamW, Apollo and Apollo-Mini on the playground's pre-training, from nothing.

`python -m benchmarks.pretraining` (three minutes on an idle core). Every optimizer sees the same first weights and the
same stream of dialogues. Each gets the learning rate that was best of four over a shorter run; that table
also shows whether one rate serves all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from benchmarks.table import show
from personality.playground import recipe as playground
from personality.vectors.training.apollo import Apollo, state_bytes

_SHORT, _LONG = 75, 500
_SHOWN = (50, 100, 200, 300, 400, 500)
_RATES = (2e-3, 4e-3, 8e-3, 16e-3)
_AVERAGED = 25  # batches in one figure
Make = Callable[[list[torch.nn.Parameter], float], torch.optim.Optimizer]
Batch = tuple[Tensor, Tensor]

_KINDS: dict[str, Make] = {
    "AdamW": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0, fused=True),
    "Apollo, rank 32": lambda p, lr: Apollo(p, lr=lr, rank=32),
    "Apollo, rank 8": lambda p, lr: Apollo(p, lr=lr, rank=8),
    "Apollo-Mini": lambda p, lr: Apollo(p, lr=lr, rank=1, scale_type="tensor"),
}


def main() -> None:
    torch.set_num_threads(1)
    settings = playground.Recipe()
    tokenizer = playground._tokenizer(settings)
    stream = playground._batches(settings, tokenizer)
    batches = [next(stream) for _ in range(_LONG)]

    def run(make: Make, rate: float, steps: int) -> tuple[list[float], int]:
        torch.manual_seed(settings.seed)
        model = Qwen3ForCausalLM(playground._config(settings, tokenizer)).train()
        optimizer = make(list(model.parameters()), rate)
        losses = _train(model, optimizer, rate, replace(settings, steps=steps, warmup=steps // 10), batches)
        return losses, state_bytes(optimizer)

    sweep, rows = [], []
    for name, make in _KINDS.items():
        finals = {rate: _last(run(make, rate, _SHORT)[0]) for rate in _RATES}
        best = min(finals, key=finals.__getitem__)
        sweep.append((name, *(f"{loss:.3f}" for loss in finals.values())))
        losses, held = run(make, best, _LONG)
        shown = [f"{_last(losses[:step]):.3f}" for step in _SHOWN]
        rows.append((name, f"{best:g}", *shown, f"{held / 1e6:.2f}"))
    show(f"Loss after {_SHORT} steps by learning rate", ["", *(f"{rate:g}" for rate in _RATES)], sweep)
    columns = ["", "lr", *(f"step {step}" for step in _SHOWN), "state MB"]
    show(f"The playground's pre-training, {_LONG} steps (mean loss of the last {_AVERAGED} batches)", columns, rows)


def _train(
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    peak: float,
    settings: playground.Recipe,
    batches: list[Batch],
) -> list[float]:
    losses = []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * playground._rate(step, settings)
        ids, weights = batches[step]
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        goal = weights[:, 1:].flatten()
        loss = (each * goal).sum() / goal.sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _last(losses: list[float]) -> float:
    recent = losses[-_AVERAGED:]
    return sum(recent) / len(recent)


if __name__ == "__main__":
    main()
