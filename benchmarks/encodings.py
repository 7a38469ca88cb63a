"""Encodings of task vectors: sizes and speeds against the checkpoint itself and plain zstd, on real fine-tunes.

`python -m benchmarks.encodings [--steps 200 --rounds 5 --keep FOLDER]`. A Llama of 19.5M parameters learns the source
code and the manual of Python, byte by byte; then AdamW fine-tunes it, on float32 weights, on the manual alone, warmed
up and annealed by a cosine, at two peak learning rates. Base and fine-tunes are saved in bfloat16, and in float32 for a
second table. With --keep they stay in a folder and are used again.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from benchmarks.table import median, show
from personality.making.reencoding import trim_limit
from personality.manifests.repository import Repository
from personality.vectors.base import weights_digest
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.encoders import Stored, store_delta, store_exact, store_low_rank, store_sparse
from personality.vectors.encoding import Encoding, residual
from personality.vectors.exact import ExactVector
from personality.vectors.fine_tune import FineTune
from personality.vectors.task_vector import TaskVector, open_task_vector
from personality.vectors.tensors import row_blocks

RATES = (1e-5, 1e-4)
DENSITIES = (0.2, 0.05)
RANK = 16
_BLOCK_ELEMENTS = 1 << 20


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pretraining", type=int, default=400)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = options.keep or Path(name)
        if not (root / "base-float32").is_dir():
            make_models(root, options.pretraining, options.steps)
        for dtype in ("bfloat16", "float32"):
            for rate in RATES:
                measure(root, dtype, rate, options.rounds)


def make_models(root: Path, pretraining: int, steps: int) -> None:
    """A base and its fine-tunes, in both dtypes; the float32 base has the bfloat16 one's values."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    library = Path(sysconfig.get_paths()["stdlib"])
    manual = (library / "pydoc_data/topics.py").read_bytes()
    code = b"".join(path.read_bytes() for path in sorted(library.glob("*.py")))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    train(model, code + manual, 1e-3, pretraining)
    model.to(torch.bfloat16).save_pretrained(root / "base-bfloat16")
    model.float().save_pretrained(root / "base-float32")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for rate in RATES:
        model.load_state_dict(base)
        train(model, manual, rate, steps)
        model.save_pretrained(root / f"{rate:g}-float32")
        model.to(torch.bfloat16).save_pretrained(root / f"{rate:g}-bfloat16")
        model.float()


def train(model: Any, text: bytes, peak: float, steps: int, warm: int = 20) -> None:
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, fused=True)
    for step in range(steps):
        rate = peak * min(1, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        places = torch.randint(0, len(data) - 65, (4,), generator=generator).tolist()
        rows = torch.stack([data[place : place + 64] for place in places])
        loss = model(rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"lr {peak:g}, step {step + 1}: loss {loss.item():.3f}", flush=True)


def measure(root: Path, dtype: str, rate: float, rounds: int) -> None:
    base, tuned = Checkpoint(root / f"base-{dtype}"), Checkpoint(root / f"{rate:g}-{dtype}")
    source = FineTune(base, tuned)
    size = sum(spec.nbytes for spec in tuned.specs.values())
    seconds: dict[str, list[tuple[float, ...]]] = {}
    facts: dict[str, tuple[int, str]] = {"safetensors": (size, "")}
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):  # in turn, so that a slow minute of the machine hits all alike
            path = Path(name) / "copy"
            copying = timed(lambda path=path: write_copy(tuned, path))
            seconds.setdefault("safetensors", []).append((copying, math.nan, timed(lambda path=path: read_all(path))))
            for title, other in (("zstd -3", None), ("XOR with the base, zstd -3", base)):
                frames: list[bytes] = []
                packing = timed(lambda frames=frames, other=other: frames.extend(packed(tuned, other)))
                unpacking = timed(lambda frames=frames, other=other: unpacked(frames, tuned, other))
                seconds.setdefault(title, []).append((packing, math.nan, unpacking))
                facts[title] = (sum(map(len, frames)), "")
            for title, store in encoders(base, source).items():
                repository = Repository(Path(name) / f"{title}-{number}")
                weights_digest(base, repository.cache)  # a repository has read its base before
                start = time.process_time()
                vector_id, _ = store(repository)
                storing = time.process_time() - start
                vector = open_task_vector(repository, vector_id, title, base=base)
                found = [storing, timed(lambda vector=vector: read_rows(vector, base))]
                if isinstance(vector, ExactVector):
                    found.append(timed(lambda vector=vector: read_restored(vector, base)))
                seconds.setdefault(title, []).append(tuple(found))
                if number == 0:
                    room = sum(spec.nbytes for spec in vector.specs.values())
                    facts[title] = (room, f"{residual(source, vector, base).whole:.3g}")
    rows = []
    for title, taken in seconds.items():
        middle = [median(column) for column in zip(*taken, strict=True)]
        speeds = ["" if math.isnan(value) else f"{size / value / 1e6:.0f}" for value in middle]
        share = facts[title][0] / size
        rows.append(
            (title, f"{facts[title][0] / 1e6:.1f}", f"{share:.1%}", *speeds, *[""] * (3 - len(speeds)), facts[title][1])
        )
    show(
        f"A {dtype} fine-tune of {size / 1e6:.0f} MB, learning rate up to {rate:g} (MB/s a core; medians of {rounds})",
        ["", "MB", "of the checkpoint", "stored, MB/s", "change read, MB/s", "weights read, MB/s", "residual"],
        rows,
    )


def encoders(base: Checkpoint, source: FineTune) -> dict[str, Callable[[Repository], Stored]]:
    """By title, what stores the vector: compressing, hashing and syncing; the manifest's figures are not made here."""

    def sparse(density: float) -> Callable[[Repository], Stored]:
        def store(repository: Repository) -> Stored:
            limit = trim_limit(source, Encoding("sparse", density=density))
            assert limit is not None
            return store_sparse(repository, source, density, "vector", limit, quiet)

        return store

    return {
        "delta": lambda repository: store_delta(repository, source, quiet),
        "exact": lambda repository: store_exact(repository, base, source, quiet),
        **{f"sparse, density {density}": sparse(density) for density in DENSITIES},
        f"low-rank, rank {RANK}": lambda repository: store_low_rank(repository, base, source, RANK, quiet),
    }


def quiet(done: int, total: int, name: str) -> None:
    pass


def timed(work: Callable[[], object]) -> float:
    """Seconds of this process's one thread: what a core can do, whoever else is on the machine, disks left out."""
    start = time.process_time()
    work()
    return time.process_time() - start


def write_copy(tuned: Checkpoint, path: Path) -> None:
    with path.open("wb") as file:
        for name in tuned.specs:
            file.write(tuned.bytes_of(name))


def read_all(path: Path) -> None:
    path.read_bytes()


def packed(tuned: Checkpoint, other: Checkpoint | None) -> list[bytes]:
    compressor = zstandard.ZstdCompressor(level=3)
    return [
        compressor.compress(tuned.bytes_of(name) if other is None else differing(tuned.bytes_of(name), other, name))
        for name in tuned.specs
    ]


def unpacked(frames: list[bytes], tuned: Checkpoint, other: Checkpoint | None) -> None:
    decompressor = zstandard.ZstdDecompressor()
    for frame, name in zip(frames, tuned.specs, strict=True):
        found = decompressor.decompress(frame)
        if other is not None:
            differing(found, other, name)


def differing(data: bytes | memoryview, other: Checkpoint, name: str) -> memoryview:
    """The bits in which a tensor's bytes and the base's differ; of these and the base's, the tensor's."""
    return (np.frombuffer(data, np.uint8) ^ np.frombuffer(other.bytes_of(name), np.uint8)).data


def read_rows(vector: TaskVector, base: Checkpoint) -> None:
    for name in vector.shapes:
        for start, stop in row_blocks(base.specs[name], _BLOCK_ELEMENTS):
            vector.rows(name, start, stop).float().sum()  # what is mapped is read, too


def read_restored(vector: ExactVector, base: Checkpoint) -> None:
    for name in vector.shapes:
        for start, stop in row_blocks(base.specs[name], _BLOCK_ELEMENTS):
            vector.restored_rows(name, start, stop)


if __name__ == "__main__":
    main()
