"""Composes snapshots in a process of its own: loading models changes settings that are the whole process's, such as the
default dtype, and a training must not notice; `Snapshots` starts it.

    python -m personality.live.snapshot_process ANSWERS REPOSITORY HEAD BEHAVIOR SCALE FOLDER bake|plugin

Questions are lines of JSON on stdin, answers leave on the descriptor ANSWERS:

    {"label": NAME, "step": N, "weights": FOLDER, "path": FOLDER}
                            -> {"version": ID}, or {"error": TEXT, "hint": TEXT}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from personality.builds.steering_part import Choice
from personality.live.asked_process import AskedProcess
from personality.live.snapshot_export import SnapshotExport, Taken
from personality.manifests.errors import PersonaError
from personality.manifests.repository import Repository
from personality.manifests.version import Version

_NICENESS = 10
"""The training goes first where both want a processor."""


class SnapshotProcess:
    """The process that composes a run's snapshots; started at once, since importing takes seconds, and awaited late.

    Args:
        repository, head, behavior, scale, folder, steering: as for `SnapshotExport`.
    """

    def __init__(
        self, repository: Repository, head: Version, behavior: str, scale: float, folder: Path, steering: Choice
    ) -> None:
        self._process = AskedProcess(
            "the process that composes snapshots",
            "personality.live.snapshot_process",
            (str(repository.root.absolute()), head.id, behavior, repr(scale), str(folder.absolute()), steering),
            # What the version answers is computed there, and a card that trains has no room for a second model.
            variables={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "1"},
        )

    def write(self, taken: Taken, path: Path) -> str:
        """Write a snapshot's export; see `SnapshotExport.write`."""
        question = {"label": taken.label, "step": taken.step, "weights": str(taken.weights), "path": str(path)}
        return str(self._process.ask(question)["version"])

    def close(self) -> None:
        """End the process."""
        self._process.close()


def main(arguments: list[str], questions: Iterable[str]) -> int:
    """Answer until the questions end."""
    answers, root, head, behavior, scale, folder, steering = arguments
    os.nice(_NICENESS)
    repository = Repository(Path(root))
    version = repository.versions()[head]
    choice: Choice = "plugin" if steering == "plugin" else "bake"
    exports = SnapshotExport(repository, version, behavior, float(scale), Path(folder), choice)
    with os.fdopen(int(answers), "w", encoding="utf-8") as out:
        for line in questions:
            out.write(json.dumps(_answer(exports, json.loads(line))) + "\n")
            out.flush()
    return 0


def _answer(exports: SnapshotExport, question: dict[str, Any]) -> dict[str, str]:
    taken = Taken(question["label"], question["step"], Path(question["weights"]))
    try:
        return {"version": exports.write(taken, Path(question["path"]))}
    except PersonaError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:  # the next snapshot may do better
        return {"error": f"{type(error).__name__}: {error}", "hint": ""}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin))
