"""A diff needs a few copies of the largest tensor, whatever the model's size (anonymous memory of a real process)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.composition.test_memory import MAKE, run

# Diffs recipes with two changes under ties, which composes four mixtures more; prints peaks above the start.
DIFF = """
import json, sys, threading, time, torch
from pathlib import Path
from personality.composition.composer import Composer
from personality.composition.weight_diff import weight_changes
from personality.difference.owners import parts_of
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector

torch.set_num_threads(1)

def anonymous():
    return next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x) * 1024

def diff(root, ids):
    repository, base = Repository(root / "repository"), Checkpoint(root / "base")
    vectors = {v: open_task_vector(repository, v, "vector") for v in ids}
    uses = tuple(Use(behavior=f"b{i}", number=1, vector=v, scale=0.5) for i, v in enumerate(ids))
    identity = BaseIdentity(source="base", fingerprint="0" * 64)
    before, after = (Personality(base=identity, composition=Composition(method="ties"), uses=u) for u in ((), uses))
    compose = lambda recipe: Composer(base, recipe, vectors)
    peak, start, done = 0, anonymous(), threading.Event()
    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    found = weight_changes(compose(before), compose(after), parts_of(before, after, compose))
    done.set()
    watcher.join()
    assert abs(sum(owner.share for owner in found.owners) - 1) < 1e-6
    return peak - start

root, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
print(json.dumps([diff(root / str(count), ids) for count, ids in jobs]))
"""

_MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    small, large = run(MAKE, str(tmp_path), "2", "8")
    _, two, eight = run(DIFF, str(tmp_path), json.dumps([[2, small], [2, small], [8, large]]))
    # A tensor of 512 × 2048 is 4 MiB in float32: six more of them in two versions alone would be 48.
    assert eight < two + 4 * _MIB
    assert eight < 80 * _MIB
