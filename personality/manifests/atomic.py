"""Writes that are either whole or absent: temporary file in the same folder, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from personality.manifests.errors import PersonaError

TEMPORARY_PREFIX = ".tmp-"
"""What an interrupted write leaves behind starts with this; readers pass it over and `gc` removes it."""

_OWNER = re.compile(rf"^{re.escape(TEMPORARY_PREFIX)}.*?-(\d+)(?:-[0-9a-f]+)?$")


def sync(path: Path) -> None:
    """Make a file's content durable, or a folder's own entries (a rename is not, until its folder is synced)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no reader takes for a finished file."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def writing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when the block ends without an error.

    Args:
        path: the final name; missing parent folders are made.
        mode: permission bits of the finished file.

    Raises:
        PersonaError: when the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # where the folder itself is what cannot be used
            temporary.unlink(missing_ok=True)
        raise PersonaError(
            f"cannot write {path}: {error.strerror or error}",
            "free some room or mend the folder's permissions, then run the command again; nothing was changed here",
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a whole file atomically; see `writing`."""
    with writing(path, mode=mode) as file:
        file.write(data)


def remove(path: Path) -> None:
    """Remove a file, durably; a file that is not there is no error."""
    if path.exists():
        path.unlink()
        sync(path.parent)


def leftovers(folder: Path, *, deep: bool = True) -> list[Path]:
    """Temporary files and folders, sorted: being written, or left behind by an interrupted write.

    Args:
        folder: where to look; one that is not there has none.
        deep: also in the folders below it.
    """
    if not folder.is_dir():
        return []
    pattern = f"{TEMPORARY_PREFIX}*"
    return sorted(folder.rglob(pattern) if deep else folder.glob(pattern))


def abandoned(folder: Path, *, deep: bool = True) -> list[Path]:
    """Those of `leftovers` that no living process writes; what lies in a temporary folder goes with that folder."""
    found = leftovers(folder, deep=deep)
    folders = set(found)
    return [path for path in found if folders.isdisjoint(path.parents) and not _owner_lives(path)]


def _owner_lives(path: Path) -> bool:
    """Whether the process that writes a temporary file still runs; what bears no process's number is not ours."""
    match = _OWNER.match(path.name)
    if match is None:
        return True
    try:
        os.kill(int(match.group(1)), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
