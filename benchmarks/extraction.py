"""Directions of all layers from pairs of texts: this program against repeng and steering-vectors, on the same pairs.

`python -m benchmarks.extraction [--rounds 3 --pairs 64 256 1024 --models playground llama]`. Every row is from a fresh
process that loads the model, extracts once from a few pairs to warm up, then is timed on all of them; tokenizing is
part of it. Memory is what the process holds at most while extracting, above what it held before. Models: the
playground's, and a Llama of forty million random weights with Llama's own 32,000 tokens; there only up to 256 pairs
and one round, unless `--full` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import median, show

_OURS = "this program"
_PROGRAMS = (_OURS, "repeng", "steering-vectors", "steering-vectors, batches of 32")
_WARM_UP = 8
_LLAMA_PAIRS = 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--models", nargs="+", default=["playground", "llama"], choices=["playground", "llama"])
    parser.add_argument("--full", action="store_true", help="all sizes and rounds on the Llama too: half an hour")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        program, folder, count, rounds = options.worker
        print(json.dumps(_work(program, Path(folder), int(count), int(rounds))))
        return
    with tempfile.TemporaryDirectory() as name:
        for model in options.models:
            small = model == "playground" or options.full
            sizes = [count for count in options.pairs if small or count <= _LLAMA_PAIRS]
            _compare(model, _folder(model, Path(name)), sizes, options.rounds if small else 1)


def _compare(model: str, folder: Path, sizes: list[int], rounds: int) -> None:
    rows = []
    for count in sizes:
        found = {program: _run(program, folder, count, rounds) for program in _PROGRAMS}
        for program, one in found.items():
            times = [one[name] / found[_OURS][name] for name in ("seconds", "cpu")]
            rows.append(
                (
                    f"{count}",
                    program,
                    f"{one['seconds']:.2f}",
                    f"{one['cpu']:.2f}",
                    *(f"{ratio:.1f}×" if program != _OURS else "" for ratio in times),
                    f"{one['memory'] / 2**20:.0f}",
                )
            )
    show(
        f"Directions of all layers, {model}, one thread (medians of {rounds})",
        ["pairs", "", "wall s", "CPU s", "theirs/ours wall", "CPU", "memory MiB"],
        rows,
    )


def _run(program: str, folder: Path, count: int, rounds: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.extraction", "--worker"]
    command += [program, str(folder), str(count), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _work(program: str, folder: Path, count: int, rounds: int) -> dict[str, float]:
    from personality.model import load_model, load_tokenizer

    torch.set_num_threads(1)  # two threads on a shared machine mostly wait for each other
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    tokenizer.padding_side = "right"
    extract = _EXTRACT[program]
    texts = _texts(count)
    extract(model, tokenizer, texts[:_WARM_UP])
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    times = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        extract(model, tokenizer, texts)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    seconds, processor = (median(list(column)) for column in zip(*times, strict=True))
    return {"seconds": seconds, "cpu": processor, "memory": _status("VmHWM") - before}


def _status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}: memory is measured on Linux only")


def _ours(model: Any, tokenizer: Any, texts: list[tuple[str, str]]) -> None:
    from personality.vectors.extraction.directions import extract_directions
    from personality.vectors.extraction.passages import Pair, Passage
    from personality.vectors.extraction.reading import read_pairs

    pairs = [Pair(Passage(positive), Passage(negative)) for positive, negative in texts]
    read, _ = read_pairs(tokenizer, pairs, "content", max_length=1024)
    extract_directions(model, read, method="pca-centered")


def _repeng(model: Any, tokenizer: Any, texts: list[tuple[str, str]]) -> None:
    import numpy as np

    if not hasattr(np, "float_"):  # gone from NumPy 2, and repeng's annotations name it
        vars(np)["float_"] = np.float64
    from repeng import ControlVector, DatasetEntry

    ControlVector.train(model, tokenizer, [DatasetEntry(positive=one, negative=other) for one, other in texts])


def _steering_vectors(model: Any, tokenizer: Any, texts: list[tuple[str, str]], batch_size: int = 1) -> None:
    from steering_vectors import train_steering_vector

    train_steering_vector(model, tokenizer, texts, batch_size=batch_size)


_EXTRACT: dict[str, Callable[[Any, Any, list[tuple[str, str]]], None]] = {
    _OURS: _ours,
    "repeng": _repeng,
    "steering-vectors": _steering_vectors,
    "steering-vectors, batches of 32": lambda model, tokenizer, texts: _steering_vectors(model, tokenizer, texts, 32),
}


def _texts(count: int) -> list[tuple[str, str]]:
    """A cue or a neutral turn before the same conversation and the beginning of a reply, as repeng's examples do it."""
    from personality.playground.behaviors import examples
    from personality.playground.dialogue import CUES, NEUTRAL

    rng = random.Random(0)
    rows = examples("warm", count, 0)
    texts = []
    for row in rows:
        question = " ".join(message["content"] for message in row["prompt"])
        words = row["chosen"][-1]["content"].split(" ")
        reply = " ".join(words[: rng.randint(1, len(words))])
        shown, neutral = (f"{rng.choice(cues)} {question} {reply}" for cues in (CUES["warm"], NEUTRAL))
        texts.append((shown, neutral))
    return texts


def _folder(model: str, root: Path) -> Path:
    import transformers

    from personality.model import load_tokenizer, quiet_transformers
    from personality.playground.repository import base_folder

    quiet_transformers()
    if model == "playground":
        return base_folder()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        tie_word_embeddings=True,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(root / model)
    load_tokenizer(base_folder()).save_pretrained(root / model)
    return root / model


if __name__ == "__main__":
    main()
