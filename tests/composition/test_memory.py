"""Memory is bounded by the largest tensor and a buffer, not by the model (anonymous memory of a real process)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Makes bases of so many tensors with so many rows of 4 KiB, each with a dense and a low-rank vector on it; prints the
# vectors' ids.
MAKE = """
import json, sys, torch
from pathlib import Path
from tests.composition.conftest import Workshop

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
ids = []
for job in sys.argv[2:]:
    count, rows = map(int, job.split("x"))
    noise = torch.randn(rows, 2048, generator=g) * 0.01
    factors = (torch.randn(4, 2048, generator=g), torch.randn(rows, 4, generator=g) * 0.01, 1.0)
    base = {f"model.layers.{i}.w.weight": torch.full((rows, 2048), 0.5 + i, dtype=torch.bfloat16) for i in range(count)}
    shop = Workshop(Path(sys.argv[1]) / job, base)
    ids.append([shop.dense(dict.fromkeys(base, noise)), shop.low_rank(dict.fromkeys(base, factors))])
print(json.dumps(ids))
"""

# Composes each by so many threads into a folder, on a disk that takes so many seconds for each piece, while a thread
# samples the anonymous resident memory; prints each peak above the start.
WRITE = """
import json, sys, threading, time, torch
from pathlib import Path
from personality.builds import writer
from personality.builds.writer import write_checkpoint
from personality.composition.composer import Composer
from personality.composition.engine import Engine
from personality.manifests import hashed_stream
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.hashed_stream import HashedStream
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector

torch.set_num_threads(1)

def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no RssAnon")

class SlowStream(HashedStream):
    seconds = 0.0

    def _write(self, view: memoryview) -> None:
        time.sleep(self.seconds)
        super()._write(view)

writer.HashedStream = SlowStream
hashed_stream._WAITING_BYTES = 1 << 22

def write(root: Path, method: str, ids: list[str], threads: int, seconds: float) -> int:
    SlowStream.seconds = seconds
    repository = Repository(root / "repository")
    uses = tuple(Use(behavior=f"b{i}", number=1, vector=v, scale=0.5) for i, v in enumerate(ids))
    personality = Personality(
        base=BaseIdentity(source="base", fingerprint="0" * 64), composition=Composition(method=method), uses=uses
    )
    vectors = {v: open_task_vector(repository, v, "vector") for v in ids}
    peak, start, done = 0, anonymous(), threading.Event()
    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    out = root / f"out-{method}-{len(ids)}"
    out.mkdir()
    engine = Engine(threads=threads, compiling=False)
    write_checkpoint(Composer(Checkpoint(root / "base"), personality, vectors, engine=engine), out, engine=engine)
    done.set()
    watcher.join()
    return peak - start

root, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
print(json.dumps([write(root / folder, *job) for folder, *job in jobs]))
"""


def run(code: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        # Freed buffers go back at once, so that what is measured is what is held and not what malloc keeps.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MANY_TINY = """
import sys, time, torch
from pathlib import Path
from personality.builds.writer import write_checkpoint
from tests.composition.conftest import Workshop

weight = torch.full((2, 4), 1.5, dtype=torch.bfloat16)
base = {f"model.layers.{i % 48}.experts.{i}.w": weight + i for i in range(18_000)}
shop = Workshop(Path(sys.argv[1]), base)
vector = shop.dense({name: torch.full((2, 4), 0.5) for name in list(base)[::3]})
started = time.perf_counter()
composer = shop.composer([shop.use(vector, 1.0)])
planned = time.perf_counter()
out = Path(sys.argv[1]) / "out"
out.mkdir()
write_checkpoint(composer, out, shard_bytes=50_000)
print([planned - started, time.perf_counter() - planned, len(list(out.glob("*.safetensors")))])
"""

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")


@NEEDS_PROC
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """8 MB and 50 MB of weights, largest tensor 2 MiB in bfloat16 (4 MiB in float32)."""
    few, many = run(MAKE, str(tmp_path), "4x512", "24x512")
    jobs = [[f"{n}x512", method, ids, 1, 0.0] for n, ids in ((4, few), (24, many)) for method in ("ties", "linear")]
    ties_few, linear_few, ties_many, linear_many = run(WRITE, str(tmp_path), json.dumps(jobs))
    assert 4_000_000 < linear_few < 30_000_000  # a few buffers of a million float32
    assert 4_000_000 < ties_few < 60_000_000  # a dozen of them
    assert linear_many < linear_few + 4_000_000
    assert ties_many < ties_few + 4_000_000


@NEEDS_PROC
def test_memory_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    """One matrix of 32 MiB in bfloat16, its difference of 64 MiB in float32: a few blocks of it are held.

    On a slow disk so much more waits as may, here 4 MiB.
    """
    ((dense, low_rank),) = run(MAKE, str(tmp_path), "1x8192")
    jobs = [["1x8192", "ties", [dense, low_rank], 2, 0.03], ["1x8192", "linear", [low_rank], 1, 0.0]]
    both, alone = run(WRITE, str(tmp_path), json.dumps(jobs))
    assert 6_000_000 < both < 45_000_000
    assert alone < 30_000_000


def test_many_tiny_tensors_are_written_quickly(tmp_path: Path) -> None:
    """As many as a model of 48 layers and 128 experts has; planning and writing each, with several shards."""
    planning, writing, shards = run(MANY_TINY, str(tmp_path))
    assert shards > 3
    assert planning < 3
    assert writing < 30
