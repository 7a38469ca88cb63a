"""One process, run to its end: what it took and how much anonymous memory it held."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a process took.

    Attributes:
        wall, cpu: seconds; processor time of it and its children together.
        anonymous: greatest anonymous resident memory, bytes; 0 where the system does not say.
        output: what it printed.
    """

    wall: float
    cpu: float
    anonymous: int
    output: str


def run(command: Sequence[str], *, cold: bool = False) -> Usage:
    """Run a command.

    Args:
        command: program and arguments.
        cold: empty the system's cache of files first; only the superuser may.

    Raises:
        RuntimeError: when it fails.
    """
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    status = Path(f"/proc/{process.pid}/status")
    anonymous = 0
    while True:
        pid, code, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, _anonymous(status))
        time.sleep(0.005)
    wall = time.monotonic() - started
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = process.stdout.read().decode(), process.stderr.read().decode()
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode != 0:
        raise RuntimeError(f"{list(command)[:3]} failed: {errors[-2000:]}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, anonymous, output)


def can_be_cold() -> bool:
    """Whether the system's cache of files can be emptied."""
    return os.access("/proc/sys/vm/drop_caches", os.W_OK)


def _anonymous(status: Path) -> int:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
