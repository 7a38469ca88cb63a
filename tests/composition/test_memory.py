"""Memory is bounded by the largest tensor and a buffer, not by the model (anonymous memory of a real process)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Makes a base of `count` tensors of 4 MiB with a dense and a low-rank vector on it, as files.
MAKE = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from tests.composition.conftest import Workshop

torch.set_num_threads(1)
root, count = Path(sys.argv[1]), int(sys.argv[2])
base = {f"model.layers.{i}.w.weight": torch.full((1024, 2048), 0.5 + i, dtype=torch.bfloat16) for i in range(count)}
shop = Workshop(root, base)
g = torch.Generator().manual_seed(0)
noise = torch.randn(1024, 2048, generator=g) * 0.01
print(shop.dense({name: noise for name in base}))
factors = (torch.randn(4, 2048, generator=g), torch.randn(1024, 4, generator=g) * 0.01, 1.0)
print(shop.low_rank({name: factors for name in base}))
"""

# Composes it into a folder while a thread samples the anonymous resident memory; prints the peak above the start.
WRITE = """
import sys, threading, time, torch
from pathlib import Path
from personality.checkpoint_writer import write_checkpoint
from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector

torch.set_num_threads(1)
torch.ones(8) * 2  # what torch allocates once
root, method, ids = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]

def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no RssAnon")

peak, done = 0, threading.Event()
def watch() -> None:
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)

start = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
repository = Repository(root / "repository")
uses = tuple(Use(behavior=f"b{i}", number=1, vector=v, scale=0.5) for i, v in enumerate(ids))
personality = Personality(
    base=BaseIdentity(source="base", fingerprint="0" * 64), composition=Composition(method=method), uses=uses
)
vectors = {v: open_task_vector(repository, v, "vector") for v in ids}
out = root / f"out-{method}"
out.mkdir()
write_checkpoint(Composer(Checkpoint(root / "base"), personality, vectors), out)
done.set()
watcher.join()
print(peak - start)
"""


def run(code: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        # Freed buffers go back at once, so that what is measured is what is held and not what malloc keeps.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """17 MB and 84 MB of weights, largest tensor 4 MiB in bfloat16 (8 MiB in float32)."""
    few, many = 4, 20
    ids = {count: run(MAKE, str(tmp_path / str(count)), str(count)) for count in (few, many)}

    def peak(count: int, method: str) -> int:
        return int(run(WRITE, str(tmp_path / str(count)), method, *ids[count])[0])

    small, large = peak(few, "ties"), peak(many, "ties")
    assert large < small + 3_000_000
    assert large < 60_000_000  # a dozen buffers of a million float32
    assert peak(many, "linear") < 30_000_000
