"""Reading weights while they are trained: lock-free on shared memory, beside whole versions; and a switched vLLM.

`python -m benchmarks.live [--rounds 3] [--vllm ENV]` prints the tables of docs/live.md. A run on the playground trains
in this process, with Apollo, on the weights in shared memory; a process beside it answers from them all the while.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from benchmarks.table import median, show
from personality.evaluation.scores import encode, prompt_text
from personality.live.reader import ReaderProcess
from personality.live.shared_weights import SharedWeights
from personality.model import load_model, load_tokenizer
from personality.playground.behaviors import examples, general
from personality.playground.repository import base_folder
from personality.vectors.training.apollo import Apollo
from personality.vectors.training.examples import Example, Message
from personality.vectors.training.run import Callbacks, fine_tune
from personality.vectors.training.settings import make_settings
from personality.vectors.training.trainable import chosen_parameters

EXAMPLES = 120
MAX_TOKENS = 24
PROMPTS = 12
Way = Literal["in place", "copied in", "whole", "none"]
"""How weights get to the reader: it reads what is being trained; the trainer writes every k-th step over what it reads,
tensor by tensor; likewise, but it copies whole steps before each reply; or there is no reader."""


@dataclass
class Measured:
    """What one run gave; every list has one entry a token or a reply."""

    training: float
    step_seconds: list[float]
    writing: list[float]
    replies: int = 0
    tokens: int = 0
    torn: list[bool] = field(default_factory=list)
    mixed: list[bool] = field(default_factory=list)
    torn_kl: list[float] = field(default_factory=list)
    torn_nearest: list[float] = field(default_factory=list)
    whole_kl: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    flips: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    copying: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    shared_bytes: int = 0


def said(turns: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]


def data() -> tuple[list[Example], list[Example]]:
    own = [
        Example(said(row["prompt"]), said(row["chosen"]), said(row["rejected"]), row.get("side"))
        for row in examples("listening", EXAMPLES, 0)
    ]
    return own, [Example(said(row["prompt"]), said(row["completion"])) for row in general(EXAMPLES // 4, 0)]


def prompts(tokenizer: Any) -> list[list[int]]:
    rows = examples("listening", PROMPTS, 1)
    return [encode(tokenizer, prompt_text(tokenizer, row["prompt"])) for row in rows]


class Writer:
    """Lets a run's steps reach the shared memory, and keeps a copy of every state that did.

    Args:
        shared: the memory.
        model: in training.
        way: how.
        every: steps between two writes, unless the run writes by itself.
    """

    def __init__(self, shared: SharedWeights, model: Any, way: Way, every: int) -> None:
        self.shared, self.way, self.every = shared, way, every
        self.parameters = dict(model.named_parameters())
        self.states: dict[int, dict[str, Tensor]] = {}
        self.writing: list[float] = []
        self.times: list[float] = []
        self._step = 0
        self._open: Any = None
        if way == "in place":
            shared.adopt(model)
        self._keep(0)

    def _keep(self, step: int) -> None:
        self.states[step] = {name: self.parameters[name].detach().clone() for name in self.shared.changing}

    @contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        if isinstance(optimizer, Apollo) and self.way == "in place":
            self._began = time.perf_counter()
            self._open = self.shared.writing(self._step + 1)
            self._open.__enter__()

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if not isinstance(optimizer, Apollo):
            return
        self._step += 1
        if self.way == "in place":
            self._open.__exit__(None, None, None)
            self.writing.append(time.perf_counter() - self._began)
        elif self.way != "none" and self._step % self.every == 0:
            began = time.perf_counter()
            self.shared.write(self._step, self.parameters)
            self.writing.append(time.perf_counter() - began)
        self.times.append(time.perf_counter())
        if self.way == "in place" or self._step % self.every == 0:
            self._keep(self._step)


def run(way: Way, *, lr: float, every: int = 1, seed: int = 0, kl: bool = True) -> Measured:
    """Train once, with a reader beside it; then hold what it answered against the states that were kept."""
    folder = base_folder()
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    settings = make_settings(
        method="orpo",
        lr=lr,
        rank=8,
        batch_size=6,
        max_length=256,
        seed=seed,
        guard=False,
        schedule="constant",
        warmup=0,
    )
    parameters = dict(model.named_parameters())
    shared = SharedWeights.create(parameters, chosen_parameters(model, settings))
    writer = Writer(shared, model, way, every)
    own, others = data()
    heads = prompts(tokenizer)
    with tempfile.TemporaryDirectory() as name:
        into = Path(name) / "replies.safetensors"
        reader = None if way == "none" else ReaderProcess(folder, shared, "copied" if way == "whole" else "in-place")
        if reader is not None:
            reader.ask({"generate": heads[0], "max_tokens": 4})
            reader.send({"serve": heads, "max_tokens": MAX_TOKENS, "into": str(into)})
        began = time.perf_counter()
        with writer.watching():
            report = fine_tune(
                model, tokenizer, own, others, settings, work_dir=Path(name), callbacks=Callbacks(checkup=None)
            )
        training = time.perf_counter() - began
        shared.finish()
        steps = [later - earlier for earlier, later in zip(writer.times, writer.times[1:], strict=False)]
        found = Measured(report.seconds or training, steps, writer.writing, shared_bytes=shared.nbytes)
        if reader is not None:
            reader.answer()
            reader.close()
            _compare(found, load_file(into), writer.states, heads, kl=kl)
    shared.close()
    return found


class _States:
    """What consistent states answer: one model that takes the weights of any step.

    Args:
        states: weights by step.
    """

    def __init__(self, states: dict[int, dict[str, Tensor]]) -> None:
        self._states = states
        self._model = load_model(base_folder())
        self._own = dict(self._model.named_parameters())

    @torch.inference_mode()
    def tables(self, steps: set[int], ids: list[int], start: int) -> dict[int, Tensor]:
        """Log-probabilities (positions from `start`, vocabulary), float64, by step."""
        found = {}
        for step in steps:
            for name, tensor in self._states[step].items():
                self._own[name].copy_(tensor)
            found[step] = self._model(input_ids=torch.tensor([ids])).logits[0, start:].float().log_softmax(-1).double()
        return found


def _compare(
    found: Measured, told: dict[str, Tensor], states: dict[int, dict[str, Tensor]], heads: list[list[int]], *, kl: bool
) -> None:
    """KL of every token's distribution to that of consistent states, given the same tokens before it."""
    consistent = _States(states)
    found.replies = len(told["seconds"])
    found.tokens = len(told["ids"])
    found.seconds, found.copying = told["seconds"].tolist(), told["copying"].tolist()
    found.behind = [float(value) for value in told["behind"]]
    found.torn = (told["first"] != told["last"]).tolist()
    for reply in range(found.replies):
        here = torch.nonzero(told["reply"] == reply)[:, 0]
        first, last = told["first"][here].tolist(), told["last"][here].tolist()
        found.mixed.append(min(first) != max(last))
        if not kl:
            continue
        prompt = heads[int(told["prompt"][here[0]])]
        ids, answered = told["ids"][here].tolist(), told["log_probabilities"][here].double()
        tables = consistent.tables({*first, *last}, [*prompt, *ids[:-1]], len(prompt) - 1)
        for place, (low, high) in enumerate(zip(first, last, strict=True)):
            older, newer = tables[low][place], tables[high][place]
            distance = _kl(older, answered[place])
            if low == high:
                found.whole_kl.append(distance)
                continue
            found.torn_kl.append(distance)
            found.torn_nearest.append(min(distance, _kl(newer, answered[place])))
            found.drift.append(_kl(older, newer))
            found.flips.append(int(older.argmax()) != ids[place] != int(newer.argmax()))


def _kl(wanted: Tensor, answered: Tensor) -> float:
    """KL(wanted ‖ answered) of two rows of log-probabilities, nats."""
    return max(0.0, float((wanted.exp() * (wanted - answered)).sum()))


def _share(values: list[bool]) -> str:
    return f"{sum(values) / len(values):.1%}" if values else ""


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1e}" if values else ""


def _most(values: list[float]) -> str:
    return f"{max(values):.1e}" if values else ""


def consistency(rounds: int) -> None:
    rows = []
    plans: list[tuple[str, Way, float, int]] = [
        *((f"lock-free, in place, lr {lr:g}", "in place", lr, 1) for lr in (1e-4, 1e-3, 1e-2)),
        *((f"lock-free, written every {k} steps, lr 0.001", "copied in", 1e-3, k) for k in (1, 5, 20)),
        *((f"whole versions, every {k} steps, lr 0.001", "whole", 1e-3, k) for k in (1, 5, 20)),
    ]
    for title, way, lr, every in plans:
        found = [run(way, lr=lr, every=every, seed=seed) for seed in range(rounds)]

        def all_of(pick: Callable[[Measured], list[Any]], runs: list[Measured] = found) -> list[Any]:
            return [value for item in runs for value in pick(item)]

        rows.append(
            (
                title,
                str(sum(item.tokens for item in found)),
                _share(all_of(lambda item: item.torn)),
                _share(all_of(lambda item: item.mixed)),
                _mean(all_of(lambda item: item.torn_kl)),
                _most(all_of(lambda item: item.torn_kl)),
                _mean(all_of(lambda item: item.torn_nearest)),
                _mean(all_of(lambda item: item.drift)),
                _share(all_of(lambda item: item.flips)),
                _mean(all_of(lambda item: item.whole_kl)),
            )
        )
    columns = [
        *("weights get to the reader", "passes", "torn", "replies of several steps", "KL of torn, mean", "largest"),
        *("to the nearer step", "one write moves", "other token than both", "KL of whole, mean"),
    ]
    show(f"What a reader answers while `listening` trains (nats per token; {rounds} runs a row)", columns, rows)


def cost(rounds: int) -> None:
    ways: list[tuple[str, Way, int]] = [
        ("no reader", "none", 1),
        ("lock-free, in place", "in place", 1),
        ("lock-free, written every step", "copied in", 1),
        ("whole versions, every step", "whole", 1),
        ("whole versions, every 5 steps", "whole", 5),
    ]
    found: dict[str, list[Measured]] = {title: [] for title, _, _ in ways}
    for number in range(rounds):
        for title, way, every in ways:  # in turn: the machine's speed drifts
            found[title].append(run(way, lr=1e-3, every=every, seed=number, kl=False))
    weights = sum(parameter.nbytes for parameter in load_model(base_folder()).parameters())
    rows = []
    for title, way, _ in ways:
        items = found[title]
        ratios = [
            median(item.step_seconds) / median(alone.step_seconds)
            for item, alone in zip(items, found["no reader"], strict=True)
        ]
        replies = [value for item in items for value in item.seconds]
        tokens, spent = sum(item.tokens for item in items), sum(replies)
        copies = [value for item in items for value in item.copying]
        memory = {"none": 0, "in place": 0, "copied in": 1, "whole": 2}[way]
        writes = [value for item in items for value in item.writing]
        rows.append(
            (
                title,
                f"{median(ratios):.2f}×",
                f"{median(writes) * 1e3:.2f}" if writes and way != "in place" else "",
                f"{spent / tokens * 1e3:.2f}" if tokens else "",
                f"{median(copies) * 1e3:.2f}" if way == "whole" else "",
                f"{median([value for item in items for value in item.behind]):g}" if replies else "",
                f"{memory * weights / 1e6:.1f}",
            )
        )
    columns = [
        *("weights get to the reader", "training step", "ms a write", "ms a token", "ms to copy a version"),
        *("steps behind at a reply's end", "MB more"),
    ]
    show(f"What it costs (medians of {rounds} rounds; one core each)", columns, rows)


def switched(vllm: Path, rounds: int) -> None:
    """The versioned swap of a real vLLM: `train --live`, as a user runs it."""
    from benchmarks.live_server import published

    rows = [
        (
            str(every),
            str(len(found.published)),
            str(len(found.snapshots) - len(found.published)),
            f"{median([item.composing for item in found.published]):.2f}",
            f"{median([item.switching for item in found.published]):.2f}",
            f"{median([item.verifying for item in found.published]):.2f}",
            f"{median([item.steps_behind for item in found.published]):g}",
            f"{found.taking / max(1, len(found.snapshots)) * 1e3:.0f}",
        )
        for every, found in published(vllm, (5, 10, 20))
    ]
    columns = [
        *("snapshot every", "published", "passed over", "s to compose", "s to switch", "s to verify"),
        *("steps behind", "ms that a snapshot holds up training"),
    ]
    show("A real vLLM switched while it serves", columns, rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", type=Path, help="an environment with vLLM, to switch that too")
    options = parser.parse_args(arguments if arguments is not None else [])
    torch.set_num_threads(1)
    consistency(options.rounds)
    cost(options.rounds)
    if options.vllm is not None:
        switched(options.vllm, options.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
