"""`.persona/runs/<id>/`: what a training run keeps while it goes on, and its log afterwards."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from personality.making.training_job import TrainingJob
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import NotFoundError, PersonaError
from personality.manifests.lock import locked
from personality.manifests.repository import Repository

LOG = "log.jsonl"
_JOB = "job.json"
_DONE = "vector"
_LOCK = "lock"


class RunFolder:
    """The folder of one run.

    Args:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """Of the run."""
        return self.path.name

    @property
    def log(self) -> Path:
        """The run's log, one JSON object a line; it stays when the run is finished."""
        return self.path / LOG

    @property
    def unfinished(self) -> bool:
        """Whether the run can be gone on with."""
        return (self.path / _JOB).is_file() and not (self.path / _DONE).is_file()

    @property
    def has_checkpoints(self) -> bool:
        """Whether any phase of any arm has got as far as a checkpoint."""
        return any(self.path.glob("*/*/checkpoint-*/progress.json"))

    @property
    def vector(self) -> str:
        """Id of the vector that the finished run made."""
        return (self.path / _DONE).read_text()

    @property
    def job(self) -> TrainingJob:
        """What the run was asked to do.

        Raises:
            CorruptError, SchemaError: its record cannot be read.
        """
        return TrainingJob.read(self.path / _JOB)

    @property
    def behavior(self) -> str | None:
        """Of its job; None where that cannot be read."""
        try:
            return self.job.behavior
        except PersonaError:
            return None

    def begin(self, job: TrainingJob) -> None:
        """Make the folder; an unfinished run in it stays as it is."""
        if self.unfinished:
            return
        self.discard()
        self.log.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path / _JOB, job.to_bytes())

    def finish(self, vector: str) -> None:
        """Keep job and log, and drop everything else.

        Args:
            vector: id of what the run made.
        """
        write_bytes(self.path / _DONE, vector.encode())
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def discard(self) -> None:
        """Drop everything but the log: there is nothing to go on with."""
        if not self.path.is_dir():
            return
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in (LOG, _LOCK):
                path.unlink()

    def running(self) -> AbstractContextManager[None]:
        """Hold the run's lock: one command works on it at a time.

        Raises:
            PersonaError: another one does.
        """
        return locked(self.path / _LOCK, wait=0.5, doing=f"training here already (run {self.id})")

    @property
    def is_running(self) -> bool:
        """Whether a command works on it at this moment."""
        try:
            with self.running():
                return False
        except PersonaError:
            return True


def run_folder(repository: Repository, run: str) -> RunFolder:
    """The folder of a run, which may not exist yet."""
    return RunFolder(repository.local / "runs" / run)


def unfinished_runs(repository: Repository) -> list[RunFolder]:
    """Runs that were interrupted, oldest first."""
    found = [RunFolder(path) for path in (repository.local / "runs").glob("*")]
    return sorted((run for run in found if run.unfinished), key=lambda run: (run.path / _JOB).stat().st_mtime)


def unfinished_run(repository: Repository, behavior: str) -> RunFolder:
    """The latest unfinished run of a behavior.

    Raises:
        NotFoundError: there is none.
        PersonaError: its folder is damaged.
    """
    runs = unfinished_runs(repository)
    own = [run for run in runs if run.behavior == behavior]
    if not own:
        others = ", ".join(sorted({f"`{run.behavior}`" for run in runs if run.behavior}))
        raise NotFoundError(
            f"no unfinished run of `{behavior}`" + (f"; there is one of {others}" if others else ""),
            f"start one: `persona train {behavior} --data FILE --general FILE`",
        )
    for path in (own[-1].job.data, own[-1].job.general):
        if path is not None and not path.is_file():
            raise PersonaError(
                f"the run {own[-1].id} needs {path}, which is gone", "put the file back, or start a new run"
            )
    return own[-1]
