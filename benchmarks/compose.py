"""Composing a checkpoint: this program against mergekit, whole processes, in turn, on the same files.

`python -m benchmarks.compose [--hidden 512 --layers 8 --rounds 3]`. The model is a Llama with random bfloat16 weights
and three fine-tunes of it. Storing the vectors is timed apart: mergekit subtracts the base on every run, we once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.table import median, show

_OURS = """
import sys
from pathlib import Path
from personality.builds.build import build
from personality.versions.history import History
from personality.manifests.repository import Repository
repository = Repository(Path(sys.argv[1]))
build(repository, History(repository).find(sys.argv[2]), again=True)
"""
_COPY = "cat {inputs} > /dev/null && cp {base}/*.safetensors {target}/"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments if arguments is not None else [])
    with tempfile.TemporaryDirectory() as name:
        _run(Path(name), options.hidden, options.layers, options.rounds)


def _run(root: Path, hidden: int, layers: int, rounds: int) -> None:
    base, tuned = _models(root, hidden, layers)
    repository, seconds = _repository(root, base, tuned)
    commands = {}
    for method in ("linear", "ties"):
        commands[f"{method}: this program"] = [sys.executable, "-c", _OURS, str(repository), method]
        commands[f"{method}: mergekit"] = _mergekit(root, base, tuned, method)
    inputs = " ".join(f"{folder}/*.safetensors" for folder in [base, *tuned])
    (root / "copy").mkdir()
    commands["read inputs, copy output"] = ["sh", "-c", _COPY.format(inputs=inputs, base=base, target=root / "copy")]
    measured: dict[str, list[tuple[float, float]]] = {title: [] for title in commands}
    for _ in range(rounds):  # in turn, so that a slow minute of the machine hits all alike
        for title, command in commands.items():
            measured[title].append(_time(command))
    size = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 1e6
    rows = []
    for title, found in measured.items():
        wall, cpu = (median([item[i] for item in found]) for i in range(2))
        peer = measured.get(title.replace("this program", "mergekit")) if "this program" in title else None
        ratio = f"{median([p[0] / o[0] for p, o in zip(peer, found, strict=True)]):.1f}×" if peer else ""
        cpu_ratio = f"{median([p[1] / o[1] for p, o in zip(peer, found, strict=True)]):.1f}×" if peer else ""
        rows.append((title, f"{wall:.2f}", f"{cpu:.2f}", ratio, cpu_ratio))
    show(
        f"Composing {size:.0f} MB and three fine-tunes (whole processes, imports included; medians of {rounds})",
        ["", "wall s", "CPU s", "mergekit/ours wall", "mergekit/ours CPU"],
        rows,
    )
    print(f"\nStoring the three vectors once took {seconds:.2f} s.")


def _models(root: Path, hidden: int, layers: int) -> tuple[Path, list[Path]]:
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        vocab_size=16_000,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    base = root / "base"
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    tuned = []
    for seed in range(3):
        folder = root / f"tuned-{seed}"
        folder.mkdir()
        (folder / "config.json").write_bytes((base / "config.json").read_bytes())
        tensors = load_file(base / "model.safetensors")
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator) * 0.002
            tensors[key] = (tensor.float() + noise).to(tensor.dtype)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        tuned.append(folder)
    return base, tuned


def _repository(root: Path, base: Path, tuned: list[Path]) -> tuple[Path, float]:
    """A repository with a version tagged `linear` and one tagged `ties`; also the seconds that storing took."""
    from personality.making.importing import import_vector
    from personality.manifests.base_identity import BaseIdentity
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import Composition
    from personality.vectors.base import fingerprint
    from personality.vectors.checkpoint import Checkpoint
    from personality.versions import changes

    identity = BaseIdentity(source=str(base), fingerprint=fingerprint(Checkpoint(base)).id)
    repository = changes.initialize(root / "repository", identity, Composition(), {})
    started = time.monotonic()
    for number, folder in enumerate(tuned):
        import_vector(repository, f"tune{number}", folder)
    seconds = time.monotonic() - started
    for number in range(len(tuned)):
        changes.add(repository, VectorLabel(f"tune{number}"), 0.5)
    changes.tag(repository, "linear", "head")
    changes.compose_by(repository, Composition(method="ties", density=0.2, trim_scope="tensor"))
    changes.tag(repository, "ties", "head")
    return repository.root, seconds


def _mergekit(root: Path, base: Path, tuned: list[Path], method: str) -> list[str]:
    name = "ties" if method == "ties" else "task_arithmetic"
    parameters = {"weight": 0.5, **({"density": 0.2} if name == "ties" else {})}
    recipe = {
        "merge_method": name,
        "base_model": str(base),
        "models": [{"model": str(folder), "parameters": parameters} for folder in tuned],
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }
    path = root / f"{name}.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    script = Path(sys.executable).parent / "mergekit-yaml"
    return [str(script), str(path), str(root / f"out-{name}"), "--quiet", "--no-copy-tokenizer"]


def _time(command: list[str]) -> tuple[float, float]:
    """Wall seconds and CPU seconds of one process."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    if status != 0:
        raise RuntimeError(f"{command[:3]} failed: {errors.decode()[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
