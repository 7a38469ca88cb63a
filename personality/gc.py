"""`gc`: what nothing refers to, and what can be made again."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from personality.builds.build import build_path
from personality.making import run_folder
from personality.manifests.atomic import TEMPORARY_PREFIX, remove
from personality.manifests.repository import Repository
from personality.manifests.vector_store import MAGNITUDES_SUFFIX, stored_ids
from personality.versions.history import History


@dataclass(frozen=True)
class Garbage:
    """One thing that can go: a file or folder, why, and its size in bytes."""

    path: Path
    why: str
    bytes: int


def find_garbage(repository: Repository, *, forget_undo: bool = False, unfinished_runs: bool = False) -> list[Garbage]:
    """What can go without losing anything that a version needs.

    Args:
        repository: where.
        forget_undo: also what only the operation log's undo or redo could bring back, and the log itself.
        unfinished_runs: also training runs that could still be gone on with, but not those that are running.
    """
    found = [Garbage(path, "left by an interrupted command", _size(path)) for path in repository.interrupted()]
    kept_builds = {build_path(repository, tip) for tip in History(repository).tips}
    for folder in sorted((repository.local / "builds").glob("*")):
        if folder not in kept_builds and not folder.name.startswith(TEMPORARY_PREFIX):
            found.append(Garbage(folder, "a build that can be made again", _size(folder)))
    if unfinished_runs:
        runs = [run for run in run_folder.unfinished_runs(repository) if not run.is_running]
        words = {run.path: f"of `{run.behavior}`" if run.behavior else "that cannot be read" for run in runs}
        found += [Garbage(path, f"an unfinished run {word}", _size(path)) for path, word in words.items()]
    operations = repository.operations()
    wanted = {manifest.id for manifest in repository.manifests()}
    wanted |= {use.vector for version in repository.versions().values() for use in version.personality.uses}
    if not forget_undo:
        wanted |= {Path(change.path).stem for op in operations for change in op.changes}
    wanted |= _named_in_git(repository.root)
    vectors = stored_ids(repository)
    for vector, path in vectors.items():
        if vector not in wanted:
            found.append(Garbage(path, "a vector without a manifest", _size(path)))
    for vector, path in stored_ids(repository, MAGNITUDES_SUFFIX).items():
        if vector not in wanted or vector not in vectors:
            found.append(Garbage(path, "the magnitudes of a vector that is gone", _size(path)))
    if forget_undo:
        # The last entry stays, so that numbers go on and the first operation can never be taken back.
        for operation in operations[:-1]:
            path = repository.local / "ops" / f"{operation.number:08d}.json"
            found.append(Garbage(path, "an entry of the operation log", _size(path)))
    return found


def collect(garbage: list[Garbage]) -> int:
    """Remove what `find_garbage` found; the caller holds the lock. Returns the bytes freed."""
    for item in garbage:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            remove(item.path)
    return sum(item.bytes for item in garbage)


def _named_in_git(root: Path) -> set[str]:
    """Vectors whose manifest is on any branch or in any commit that git still has: another branch may need them."""
    command = ["git", "-C", str(root), "log", "--all", "--pretty=", "--name-only", "--", "manifests"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return set()
    return {Path(line).stem for line in result.stdout.splitlines() if line}


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
