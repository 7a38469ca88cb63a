"""One writer at a time: an advisory lock that the kernel releases when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from personality.manifests.errors import PersonaError


@contextlib.contextmanager
def locked(path: Path, *, wait: float = 10.0, doing: str = "writing to this repository") -> Iterator[None]:
    """Hold the lock file for the block.

    Args:
        path: the lock file; it is made when missing and never removed, since removal would race.
        wait: seconds to wait for another holder.
        doing: what a holder does, for the error.

    Raises:
        PersonaError: when another process still holds the lock after `wait` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
                    raise PersonaError(
                        f"another persona command (process {holder}) is {doing}",
                        "wait for it to finish, then run the command again",
                    ) from None
                time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
