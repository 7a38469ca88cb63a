"""Publishing snapshots of a run to a server, beside the run: training never waits for the server."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from personality.live.earlier import Earlier
from personality.live.live_report import LiveReport, Outcome, SnapshotEvent
from personality.live.snapshot_export import Taken
from personality.making.arm import save_weights
from personality.manifests.errors import PersonaError
from personality.manifests.transaction import now
from personality.serving.client import Client
from personality.serving.deploy import DeployError, deploy
from personality.vectors.training.guard import Sign
from personality.vectors.training.run_log import RunLog
from personality.vectors.training.step_report import StepReport
from personality.vectors.training.watch import Snapshots

_KEPT = 2  # what serves, and the one before: a server that fails to switch loads it again


class ComposesSnapshots(Protocol):
    """What makes a snapshot into an export; see `SnapshotProcess`."""

    def write(self, taken: Taken, path: Path) -> str:
        """Write an export with its certificate to a path; returns the id of its version."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


class Publisher:
    """Publishes what a run takes, in a thread of its own, the newest first; what it overtakes is passed over.

    Args:
        client: of the server.
        exports: makes exports of snapshots.
        earlier: what the server serves without this run.
        folder: for snapshots; it is this run's own.
        log: of the run; gets an event for whatever becomes of a snapshot.
        behavior: in training.
        every: steps between snapshots; None for every checkpoint.
        keep: leave the server on the last published snapshot when the run ends.
    """

    def __init__(
        self,
        client: Client,
        exports: ComposesSnapshots,
        earlier: Earlier,
        folder: Path,
        log: RunLog,
        behavior: str,
        *,
        every: int | None = None,
        keep: bool = False,
    ) -> None:
        self._client = client
        self._exports = exports
        self._earlier = earlier
        self._folder = folder
        self._log = log
        self._behavior = behavior
        self._keep = keep
        self._events: list[SnapshotEvent] = []
        self._published: list[Path] = []
        self._serving: Path | None = None  # None for what the server served before, or for what nobody knows
        self._lost = False  # a switch failed in a way that leaves open what serves
        self._waiting: Taken | None = None
        self._busy = False
        self._over = False
        self._taking = 0.0
        self._step = 0
        self._report: LiveReport | None = None
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self.snapshots = Snapshots(self.take, every)

    def take(self, model: Any, report: StepReport, warning: Sign | None) -> None:
        """Take a snapshot of a model in training, unless the guard warns of it. Whatever fails is only noted.

        Args:
            model: as it is after the step.
            report: of the step.
            warning: the guard's, of this state.
        """
        label = f"live:{self._behavior}:step-{report.step}"
        if warning is not None:
            self._note(label, report.step, "held", f"the guard warns: {warning.text}")
            return
        began = time.monotonic()
        weights = self._folder / f"taken-{report.phase}-{report.step}"
        try:
            shutil.rmtree(weights, ignore_errors=True)
            save_weights(model, weights)
        except PersonaError as error:
            shutil.rmtree(weights, ignore_errors=True)
            self._note(label, report.step, "failed", error.message)
            return
        with self._condition:
            overtaken, self._waiting = self._waiting, Taken(label, report.step, weights)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="live", daemon=True)
                self._thread.start()
            self._condition.notify_all()
        self._pass_over(overtaken, "a newer one came while the server was busy")
        self._taking += time.monotonic() - began

    def beside(self, on_step: Callable[[StepReport], None] | None) -> Callable[[StepReport], None]:
        """A callback for each step that also tells this object how far the run is."""

        def both(report: StepReport) -> None:
            self._step = report.step
            if on_step is not None:
                on_step(report)

        return both

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is under way or waiting, at most so long; whether that was reached."""
        with self._condition:
            return self._condition.wait_for(lambda: self._waiting is None and not self._busy, seconds)

    def finish(self, stopped: Sign | None = None) -> LiveReport:
        """End publishing and leave the server where it belongs: on what it served before, or, with `keep`, on the last
        good snapshot. A second call changes nothing.

        Args:
            stopped: the guard's sign, when it stopped the run.
        """
        if self._report is not None:
            return self._report
        with self._condition:
            self._over = True
            # The last state of a run is worth a switch only when it stays.
            dropped = None if self._keep and stopped is None else self._waiting
            if dropped is not None:
                self._waiting = None
            self._condition.notify_all()
        self._pass_over(dropped, "the guard stopped the run" if stopped else "the run had ended")
        if self._thread is not None:
            self._thread.join()
        self._exports.close()
        problem = self._settle()
        serving = self._label_of(self._serving) if self._serving else self._earlier.label
        self._report = LiveReport(
            url=self._client.url,
            before=self._earlier.label,
            after=serving if not problem else "",
            snapshots=tuple(self._events),
            stopped=stopped.text if stopped is not None else "",
            problem=problem,
            taking=round(self._taking, 3),
        )
        self._log.event("live ended", serving=self._report.after, problem=problem)
        return self._report

    def _settle(self) -> str:
        """Take the server to where it belongs; says what went wrong."""
        wanted = self._serving if self._keep and self._serving else None
        if self._keep and self._lost and self._published:
            wanted = self._published[-1]
        if wanted == self._serving and not self._lost:
            self._clear(keeping=wanted)
            return ""
        try:
            deploy(self._client, wanted or self._earlier.folder, back=self._serving)
        except PersonaError as error:
            # The folders stay: the server may be serving from one of them.
            back = f"persona deploy {self._earlier.label} --server {self._client.url}"
            return f"{error.message}; take it back yourself: `{back}`"
        self._serving = wanted
        self._clear(keeping=wanted)
        return ""

    def _clear(self, keeping: Path | None) -> None:
        """Drop what is not served; what stays is an export like others."""
        if keeping is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for path in self._folder.iterdir():
            if path.is_dir() and path != keeping:
                shutil.rmtree(path, ignore_errors=True)
        (self._folder / Earlier.file_name).unlink(missing_ok=True)

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting is not None or self._over)
                taken, self._waiting = self._waiting, None
                self._busy = taken is not None
            if taken is None:
                return
            try:
                self._publish(taken)
            except PersonaError as error:
                self._lost = self._lost or (isinstance(error, DeployError) and error.restored is not True)
                self._note(taken.label, taken.step, "failed", error.message)
            except Exception as error:  # nothing that happens here may end the training
                self._note(taken.label, taken.step, "failed", f"{type(error).__name__}: {error}")
            finally:
                shutil.rmtree(taken.weights, ignore_errors=True)
                with self._condition:
                    self._busy = False
                    self._condition.notify_all()

    def _publish(self, taken: Taken) -> None:
        path = self._folder / taken.weights.name.removeprefix("taken-")
        began = time.monotonic()
        version = self._exports.write(taken, path)
        composed = time.monotonic()
        try:
            deployed = deploy(self._client, path, back=self._serving or self._earlier.folder)
        except PersonaError as error:
            if not isinstance(error, DeployError) or error.restored:  # else the server may be serving from there
                shutil.rmtree(path, ignore_errors=True)
            raise
        self._serving, self._lost = path, False
        self._published.append(path)
        for old in self._published[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        self._note(
            taken.label,
            taken.step,
            "published",
            version=version,
            composing=composed - began,
            switching=deployed.seconds,
            verifying=time.monotonic() - composed - deployed.seconds,
        )

    def _pass_over(self, taken: Taken | None, why: str) -> None:
        if taken is not None:
            shutil.rmtree(taken.weights, ignore_errors=True)
            self._note(taken.label, taken.step, "passed over", why)

    def _label_of(self, path: Path) -> str:
        return next(item.label for item in reversed(self._events) if item.outcome == "published")

    def _note(
        self,
        label: str,
        step: int,
        outcome: Outcome,
        text: str = "",
        *,
        version: str = "",
        composing: float = 0.0,
        switching: float = 0.0,
        verifying: float = 0.0,
    ) -> None:
        event = SnapshotEvent(
            label,
            step,
            outcome,
            text,
            now(),
            version,
            round(composing, 3),
            round(switching, 3),
            round(verifying, 3),
            max(0, self._step - step) if outcome == "published" else 0,
        )
        with self._condition:
            self._events.append(event)
        self._log.event(f"live {outcome}", snapshot=label, at=step, text=text, seconds=switching)
