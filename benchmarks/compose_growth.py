"""How the cost of composing grows: with vectors, size, density and encoding; and what a changed scale costs.

`python -m benchmarks.compose_growth [--scale 1.0 --rounds 3]`; `--scale 0.1` for a tenth of the sizes. Each figure is a
process of its own on the same files, all of them in the system's cache; times are without imports.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoints import store_dense, store_low_rank, write_base
from benchmarks.measured_process import Usage, run
from benchmarks.table import median, show
from personality.composition.compiled import Signature
from personality.composition.compiling import compile_kernel
from personality.composition.kernels import Formula
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint

# Composes vectors by a composition into a folder; prints the seconds and the anonymous memory above the start.
_WRITE = """
import json, sys, threading, time
from pathlib import Path
from personality.builds.writer import write_checkpoint
from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector
import shutil

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

root, job = Path(sys.argv[1]), json.loads(sys.argv[2])
repository, out = Repository(root / "repository"), root / "out"
shutil.rmtree(out, ignore_errors=True)
out.mkdir()
uses = tuple(Use(behavior=f"b{i}", number=1, vector=v, scale=0.5) for i, v in enumerate(job["vectors"]))
personality = Personality(
    base=BaseIdentity(source="base", fingerprint="0" * 64), composition=Composition(**job["composition"]), uses=uses
)
peak, before, done = 0, anonymous(), threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.005)
watcher = threading.Thread(target=watch)
watcher.start()
started = time.perf_counter()
vectors = {v: open_task_vector(repository, v, "vector") for v in job["vectors"]}
write_checkpoint(Composer(Checkpoint(root / "base"), personality, vectors, cache=repository.cache), out)
seconds = time.perf_counter() - started
done.set()
watcher.join()
print(json.dumps([seconds, peak - before]))
"""
_BUILD = """
import json, sys, time
from pathlib import Path
from personality.builds.build import build
from personality.versions.history import History
from personality.manifests.repository import Repository
repository = Repository(Path(sys.argv[1]))
version = History(repository).find(sys.argv[2])
started = time.perf_counter()
built = build(repository, version, again=sys.argv[3] == "whole", shard_bytes=int(sys.argv[4]))
print(json.dumps([time.perf_counter() - started, built.taken_bytes]))
"""
_SIZES = {"0.1 GB": (640, 8), "0.4 GB": (896, 14), "1.6 GB": (2048, 14)}
"""Hidden size and layers."""
_TIES = {"method": "ties", "trim_scope": "tensor"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments if arguments is not None else [])
    _compile_kernels()
    rows = []
    for title, (hidden, layers) in _SIZES.items():
        with tempfile.TemporaryDirectory() as name:
            rows += _size(Path(name), title, max(64, int(hidden * options.scale**0.5)), layers, options.rounds)
    _rows("Sizes: two dense vectors", rows)
    with tempfile.TemporaryDirectory() as name:
        _growth(Path(name), max(64, int(896 * options.scale**0.5)), options.rounds)
    with tempfile.TemporaryDirectory() as name:
        _rebuild(Path(name), max(64, int(896 * options.scale**0.5)), options.rounds)


def _compile_kernels() -> None:
    """All that is used below, as a first large build would have each compiled: small models are not large enough."""
    for formula in (Formula("linear"), Formula("ties")):
        for vectors, dtype in ((1, "BF16"), (2, "BF16"), (3, "BF16"), (4, "BF16"), (8, "BF16"), (2, "F32")):
            signature = Signature(formula, vectors, "BF16", dtype)
            if signature.find() is None:
                compile_kernel(signature)


def _size(root: Path, title: str, hidden: int, layers: int, rounds: int) -> list[tuple[str, ...]]:
    base = Checkpoint(write_base(root / "base", hidden, layers))
    repository = Repository(root / "repository")
    vectors = [store_dense(repository, base, seed) for seed in (1, 2)]
    jobs = {
        f"{title}, {method}": {"vectors": vectors, "composition": composition}
        for method, composition in (("linear", {}), ("ties", _TIES))
    }
    return _measure(root, jobs, rounds)


def _growth(root: Path, hidden: int, rounds: int) -> None:
    base = Checkpoint(write_base(root / "base", hidden, 14))
    repository = Repository(root / "repository")
    dense = [store_dense(repository, base, seed) for seed in range(8)]
    by_count = {
        f"{count} dense, {method}": {"vectors": dense[:count], "composition": composition}
        for method, composition in (("linear", {}), ("ties", _TIES))
        for count in (1, 2, 4, 8)
    }
    _rows("Vectors", _measure(root, by_count, rounds))
    densities = {
        f"density {density:g}, per {scope}": {
            "vectors": dense[:2],
            "composition": {"method": "ties", "trim_scope": scope, "density": density},
        }
        for scope in ("tensor", "vector")
        for density in (0.05, 0.2, 0.5, 1.0)
    }
    _rows("Densities: two dense vectors by TIES", _measure(root, densities, rounds))
    thin = [store_low_rank(repository, base, seed) for seed in (1, 2)]
    kinds = {
        f"{what}, {method}": {"vectors": vectors, "composition": composition}
        for method, composition in (("linear", {}), ("ties", _TIES))
        for what, vectors in (
            ("none, as with steering alone", []),
            ("two dense", dense[:2]),
            ("two low-rank (16)", thin),
            ("one of each", [dense[0], thin[0]]),
        )
    }
    _rows("Kinds of vectors", _measure(root, kinds, rounds))


def _measure(root: Path, jobs: dict[str, dict[str, object]], rounds: int) -> list[tuple[str, ...]]:
    _warm(root)
    # The first time counts a vector's magnitudes.
    found: dict[str, list[Usage]] = {title: [] for title in jobs}
    for turn in range(rounds + 1):
        for title, job in jobs.items():
            usage = run([sys.executable, "-c", _WRITE, str(root), json.dumps(job)])
            if turn:
                found[title].append(usage)
    size = sum(path.stat().st_size for path in (root / "base").glob("*.safetensors"))
    return [_row(title, found[title], size) for title in jobs]


def _row(title: str, found: Sequence[Usage], size: int) -> tuple[str, ...]:
    told = [json.loads(item.output) for item in found]
    seconds, memory = median([item[0] for item in told]), median([item[1] for item in told])
    return title, f"{size / 1e6:.0f}", f"{seconds:.2f}", f"{size / seconds / 1e6:.0f}", f"{memory / 1e6:.0f}"


def _rows(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    show(title, ["", "checkpoint MB", "s", "MB/s written", "anonymous MB above the start"], rows)


def _warm(root: Path) -> None:
    run(["sh", "-c", f"cat {root}/base/*.safetensors {root}/repository/vectors/*/*.safetensors > /dev/null"])


def _rebuild(root: Path, hidden: int, rounds: int) -> None:
    """Four vectors of which one changes a quarter of the layers; its scale changes."""
    from personality.making.vector_records import record_vector
    from personality.manifests.base_identity import BaseIdentity
    from personality.manifests.manifest import Making
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import Composition
    from personality.vectors.base import fingerprint
    from personality.vectors.stored import StoredTask, measure
    from personality.vectors.task_vector import open_task_vector
    from personality.versions import changes

    base = Checkpoint(write_base(root / "base", hidden, 16))
    identity = BaseIdentity(source=str(root / "base"), fingerprint=fingerprint(base).id)
    repository = changes.initialize(root / "repository", identity, Composition(), {})
    quarter = tuple(f"layers.{layer}." for layer in (12, 13, 14, 15))
    for seed, only in enumerate([("",), ("",), ("",), quarter]):
        vector = open_task_vector(repository, store_dense(repository, base, seed, only), "the vector")
        norm, rounding = measure(vector, base)
        tensors = {name: str(spec) for name, spec in vector.specs.items()}
        stored = StoredTask(vector.path.stem, "delta", tensors, vector.path.stat().st_size, norm, rounding)
        with repository.writing():
            record_vector(
                repository, f"b{seed}", identity, stored, Making(how="import-checkpoint"), command="benchmark"
            )
        changes.add(repository, VectorLabel(f"b{seed}"), 0.5)
    size = sum(path.stat().st_size for path in (root / "base").glob("*.safetensors"))
    rows = []
    scales = itertools.count(start=0.2, step=0.01)  # none comes twice: what is built already would be taken whole
    for method in ("linear", "ties"):
        changes.compose_by(repository, Composition(method=method))
        for shard in (size, size // 16):
            seconds: dict[str, list[list[float]]] = {"whole": [], "taken": []}
            build = [sys.executable, "-c", _BUILD, str(repository.root)]
            run([*build, changes.rescale(repository, "b3", next(scales)).version.id, "whole", str(shard)])
            for _ in range(rounds):
                for kind in ("taken", "whole"):
                    version = changes.rescale(repository, "b3", next(scales)).version
                    seconds[kind].append(json.loads(run([*build, version.id, kind, str(shard)]).output))
            whole, taken = (median([item[0] for item in seconds[kind]]) for kind in ("whole", "taken"))
            share = median([item[1] for item in seconds["taken"]]) / size
            shards = "1 shard" if shard == size else "16 shards"
            rows.append(
                (f"{method}, {shards}", f"{whole:.2f}", f"{taken:.2f}", f"{whole / taken:.1f}×", f"{share:.0%}")
            )
    show(
        f"One scale of four changes, of a vector in a quarter of 16 layers ({size / 1e6:.0f} MB)",
        ["", "whole build s", "rebuild s", "whole/rebuild", "taken over"],
        rows,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
