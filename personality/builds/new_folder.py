"""A folder that appears under its name only when it is whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from personality.manifests.atomic import sync, temporary_beside
from personality.manifests.errors import PersonaError


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that gets its name when the block ends without an error, and else is removed.

    Raises:
        PersonaError: when it cannot be made or named.
    """
    path = path.absolute()
    temporary = temporary_beside(path)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise PersonaError(
            f"cannot make a folder in {temporary.parent}: {error.strerror}", "choose another folder"
        ) from error
    try:
        yield temporary
        _put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Give a finished folder its name. One that bears it steps aside, and comes back when that fails.

    Raises:
        PersonaError: when the folder cannot get its name.
    """
    old = temporary_beside(path)
    try:
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        if not path.exists():
            raise PersonaError(
                f"cannot put {path} in place: {error.strerror}", "mend the folder's permissions"
            ) from error
        # Another process was faster with the same version.
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
