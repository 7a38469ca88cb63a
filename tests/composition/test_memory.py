"""Memory is bounded by the largest tensor and a buffer, not by the model (anonymous memory of a real process)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Makes bases of so many tensors of 2 MiB, each with a dense and a low-rank vector on it; prints the vectors' ids.
MAKE = """
import json, sys, torch
from pathlib import Path
from tests.composition.conftest import Workshop

torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
noise = torch.randn(512, 2048, generator=g) * 0.01
factors = (torch.randn(4, 2048, generator=g), torch.randn(512, 4, generator=g) * 0.01, 1.0)
ids = []
for count in map(int, sys.argv[2:]):
    base = {f"model.layers.{i}.w.weight": torch.full((512, 2048), 0.5 + i, dtype=torch.bfloat16) for i in range(count)}
    shop = Workshop(Path(sys.argv[1]) / str(count), base)
    ids.append([shop.dense(dict.fromkeys(base, noise)), shop.low_rank(dict.fromkeys(base, factors))])
print(json.dumps(ids))
"""

# Composes each into a folder while a thread samples the anonymous resident memory; prints each peak above the start.
WRITE = """
import json, sys, threading, time, torch
from pathlib import Path
from personality.builds.writer import write_checkpoint
from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
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

def write(root: Path, method: str, ids: list[str]) -> int:
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
    out = root / f"out-{method}"
    out.mkdir()
    write_checkpoint(Composer(Checkpoint(root / "base"), personality, vectors), out)
    done.set()
    watcher.join()
    return peak - start

root, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
print(json.dumps([write(root / str(count), method, ids) for count, method, ids in jobs]))
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


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """8 MB and 50 MB of weights, largest tensor 2 MiB in bfloat16 (4 MiB in float32)."""
    few, many = run(MAKE, str(tmp_path), "4", "24")
    jobs = [[4, "ties", few], [4, "linear", few], [24, "ties", many], [24, "linear", many]]
    ties_few, linear_few, ties_many, linear_many = run(WRITE, str(tmp_path), json.dumps(jobs))
    assert 4_000_000 < linear_few < 30_000_000  # a few buffers of a million float32
    assert 4_000_000 < ties_few < 60_000_000  # a dozen of them
    assert linear_many < linear_few + 3_000_000
    assert ties_many < ties_few + 3_000_000
