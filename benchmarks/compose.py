"""Composing a checkpoint: this program against mergekit and against copying, whole processes, in turn.

`python -m benchmarks.compose [--hidden 1024 --layers 24 --rounds 3] [--device cuda]`. The model is a Llama with random
bfloat16 weights and three fine-tunes of it (374M parameters by default). Storing the vectors is timed apart: mergekit
subtracts the base on every run, we once. Warm: everything read is in the system's cache of files; cold: nothing is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.checkpoints import write_base, write_tuned
from benchmarks.measured_process import Usage, can_be_cold, run
from benchmarks.table import median, show
from personality.vectors.checkpoint import Checkpoint

_OURS = """
import json, sys, time
from pathlib import Path
from personality.builds.build import build
from personality.composition.engine import Engine
from personality.versions.history import History
from personality.manifests.repository import Repository
started = time.perf_counter()
repository = Repository(Path(sys.argv[1]))
engine = Engine(sys.argv[3], compiling=sys.argv[4] == "compiled")
build(repository, History(repository).find(sys.argv[2]), again=True, engine=engine)
print(json.dumps(time.perf_counter() - started))
"""
_COPY = "cat {inputs} > /dev/null && cp {base}/*.safetensors {target}"
METHODS = {"linear": "task_arithmetic", "ties": "ties"}
DENSITY = 0.2


@dataclass(frozen=True)
class Setup:
    """Files on disk, and what is run on them.

    Attributes:
        base: its folder.
        tuned: folders of its fine-tunes.
        repository: with versions tagged `linear` and `ties`.
        storing: seconds that storing the vectors took.
    """

    base: Path
    tuned: tuple[Path, ...]
    repository: Path
    storing: float

    def ours(self, method: str, device: str = "cpu", *, compiled: bool = True) -> list[str]:
        """The command that builds a version."""
        kind = "compiled" if compiled else "uncompiled"
        return [sys.executable, "-c", _OURS, str(self.repository), method, device, kind]

    def mergekit(self, method: str, device: str = "cpu") -> list[str]:
        """The command of mergekit's that merges the same."""
        name = METHODS[method]
        parameters = {"weight": 0.5, **({"density": DENSITY} if method == "ties" else {})}
        recipe = {
            "merge_method": name,
            "base_model": str(self.base),
            "models": [{"model": str(folder), "parameters": parameters} for folder in self.tuned],
            "parameters": {"normalize": False},
            "dtype": "bfloat16",
        }
        root = self.base.parent
        path = root / f"{name}.yaml"
        path.write_text(json.dumps(recipe))  # JSON is YAML
        command = [str(Path(sys.executable).parent / "mergekit-yaml"), str(path), str(root / f"out-{name}")]
        return [*command, "--quiet", "--no-copy-tokenizer", *(["--cuda"] if device == "cuda" else [])]

    def copy(self) -> list[str]:
        """The command that reads all that a build reads, and writes as much as it writes."""
        vectors = sorted(self.repository.glob("vectors/*/*.safetensors"))
        inputs = " ".join(map(str, [self.base / "*.safetensors", *vectors]))
        return ["sh", "-c", _COPY.format(inputs=inputs, base=self.base, target=self.base.parent / "copy.safetensors")]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold-rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments if arguments is not None else [])
    with tempfile.TemporaryDirectory() as name:
        setup = prepare(Path(name), options.hidden, options.layers)
        compare(setup, options.rounds, options.cold_rounds, options.device)


def prepare(root: Path, hidden: int, layers: int) -> Setup:
    """Write a base and three fine-tunes, and a repository with two versions that compose them."""
    from personality.making.importing import import_vector
    from personality.manifests.base_identity import BaseIdentity
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import Composition
    from personality.vectors.base import fingerprint
    from personality.versions import changes

    base = write_base(root / "base", hidden, layers)
    tuned = tuple(write_tuned(root / f"tuned-{seed}", Checkpoint(base), seed) for seed in (1, 2, 3))
    identity = BaseIdentity(source=str(base), fingerprint=fingerprint(Checkpoint(base)).id)
    repository = changes.initialize(root / "repository", identity, Composition(), {})
    started = time.monotonic()
    for number, folder in enumerate(tuned):
        import_vector(repository, f"tune{number}", folder)
    seconds = time.monotonic() - started
    for number in range(len(tuned)):
        changes.add(repository, VectorLabel(f"tune{number}"), 0.5)
    changes.tag(repository, "linear", "head")
    changes.compose_by(repository, Composition(method="ties", density=DENSITY, trim_scope="tensor"))
    changes.tag(repository, "ties", "head")
    return Setup(base, tuned, repository.root, seconds)


def compile_kernels(setup: Setup) -> float:
    """Have both kernels compiled, as a first large build does in the background; returns the seconds."""
    from personality.composition.compiled import Signature
    from personality.composition.compiling import compile_kernel
    from personality.composition.kernels import Formula
    from personality.manifests.tensor_file import TensorFile

    started = time.monotonic()
    for dtype in {
        next(iter(TensorFile(path).specs.values())).dtype for path in setup.repository.glob("vectors/*/*.s*")
    }:
        for formula in (Formula("linear"), Formula("ties")):
            compile_kernel(Signature(formula, len(setup.tuned), "BF16", dtype))
    return time.monotonic() - started


def compare(setup: Setup, warm_rounds: int, cold_rounds: int, device: str) -> None:
    """Measure every program in turn, warm and cold, and print the tables."""
    compiling = compile_kernels(setup)
    for cold in (False, True) if can_be_cold() else (False,):
        commands = {"read all inputs, write the output": setup.copy()}
        for method in METHODS:
            commands[f"{method}: this program"] = setup.ours(method, device)
            if not cold:
                commands[f"{method}: this program, not compiled"] = setup.ours(method, device, compiled=False)
            commands[f"{method}: mergekit"] = setup.mergekit(method, device)
        measured: dict[str, list[Usage]] = {title: [] for title in commands}
        rounds = cold_rounds if cold else warm_rounds
        for _ in range(rounds):  # in turn, so that a slow minute of the machine hits all alike
            for title, command in commands.items():
                if not cold and title != "read all inputs, write the output" and not measured[title]:
                    run(setup.copy())  # what the one before put out of the cache
                measured[title].append(run(command, cold=cold))
        _show(setup, measured, rounds, "cold" if cold else "warm")
    if device != "cpu":
        _show_copies(device)
    size = sum(path.stat().st_size for path in setup.repository.glob("vectors/*/*.safetensors"))
    print(
        f"\nStoring the three vectors once took {setup.storing:.1f} s ({size / 1e6:.0f} MB); "
        f"compiling two kernels once {compiling:.1f} s."
    )


def _show(setup: Setup, measured: dict[str, list[Usage]], rounds: int, state: str) -> None:
    copied = measured["read all inputs, write the output"]
    rows = []
    for title, found in measured.items():
        peer = measured[title.split(":")[0] + ": mergekit"] if "this program" in title else None
        inner = [json.loads(item.output) for item in found] if peer else []
        rows.append(
            (
                title,
                f"{median([item.wall for item in found]):.2f}",
                f"{median(inner):.2f}" if inner else "",
                f"{median([item.cpu for item in found]):.2f}",
                f"{median([item.anonymous for item in found]) / 1e6:.0f}",
                _ratio(peer, found, "wall"),
                _ratio(peer, found, "cpu"),
                _ratio(peer, found, "anonymous"),
                _ratio(found, copied, "wall") if found is not copied else "",
                f"{median([own / item.wall for own, item in zip(inner, copied, strict=True)]):.1f}×" if inner else "",
            )
        )
    size = sum(path.stat().st_size for path in setup.base.glob("*.safetensors")) / 1e6
    show(
        f"Composing {size:.0f} MB and three fine-tunes, {state} (whole processes; medians of {rounds})",
        [
            "",
            "wall s",
            "without imports",
            "CPU s",
            "anonymous MB",
            "mergekit/ours wall",
            "CPU",
            "memory",
            "wall/copy",
            "without imports/copy",
        ],
        rows,
    )


def _show_copies(device: str) -> None:
    """How fast bytes get to a GPU and move on it: what composing there cannot beat."""
    numbers = torch.zeros(1 << 28, dtype=torch.uint8)
    there = numbers.to(device)
    rows = []
    for title, copy in (("to the device", lambda: numbers.to(device)), ("on the device", there.clone)):
        seconds = []
        for _ in range(5):
            torch.cuda.synchronize()
            started = time.perf_counter()
            copy()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        rows.append((title, f"{numbers.numel() / median(seconds) / 1e9:.1f}"))
    show("Copying 268 MB", ["", "GB/s"], rows)


def _ratio(first: list[Usage] | None, second: list[Usage], what: str) -> str:
    """Median of the ratios of each round."""
    if first is None or not any(getattr(item, what) for item in second):
        return ""
    return f"{median([getattr(a, what) / getattr(b, what) for a, b in zip(first, second, strict=True)]):.1f}×"


if __name__ == "__main__":
    main(sys.argv[1:])
