"""A run's log: one JSON object a line, and TensorBoard's events on demand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from personality.manifests.atomic import write_bytes
from personality.manifests.errors import UsageError


class RunLog:
    """Appends to `log.jsonl`; every line has `event` and `arm`, step lines also `phase` and `step`.

    Args:
        path: the file; what is in it stays.
        tensorboard: folder for TensorBoard's event files, or None.
        arm: what the lines are about: `toward`, `away` or `placebo`.

    Raises:
        UsageError: TensorBoard is wanted and not installed.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, arm: str = "toward") -> None:
        self.path = path
        self.arm = arm
        self._writer = _summary_writer(tensorboard) if tensorboard is not None else None

    def of(self, arm: str) -> RunLog:
        """The same log, for another arm's lines."""
        other = RunLog(self.path, arm=arm)
        other._writer = self._writer
        return other

    def event(self, kind: str, **values: Any) -> None:
        """Append a line.

        Args:
            kind: `step`, `checkup`, `stopped` or `resumed`.
            values: JSON-able; NaN and infinite numbers are written as null.
        """
        line = json.dumps({"event": kind, "arm": self.arm, **{name: _finite(value) for name, value in values.items()}})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def step(self, phase: str, values: dict[str, Any]) -> None:
        """Append a step's figures, to TensorBoard as `arm/phase/figure`.

        Args:
            phase: objective of the phase.
            values: by name; `step` is one of them, None means not measured.
        """
        known = {name: value for name, value in values.items() if value is not None}
        self.event("step", phase=phase, **known)
        if self._writer is not None:
            for name, value in known.items():
                if name not in ("step", "steps"):
                    self._writer.add_scalar(f"{self.arm}/{phase}/{name}", value, known["step"])
            self._writer.flush()

    def forget_after(self, phase: str, step: int) -> None:
        """Drop the lines of this arm's steps that a resumed run takes again.

        Args:
            phase: that is resumed.
            step: last step that counts.
        """
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:  # the last line of a killed run may be half a line
                continue
            if (entry.get("arm"), entry.get("phase")) != (self.arm, phase) or entry.get("step", 0) <= step:
                kept.append(line)
        write_bytes(self.path, "".join(f"{line}\n" for line in kept).encode())

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "TensorBoard is not installed", "install it: `pip install tensorboard`, or leave `--tensorboard` out"
        ) from error
    return SummaryWriter(str(folder))
