"""Remembers digests of large files by their size, time and inode, so that an unchanged 30 GB is hashed once.

A file that was changed keeps at most its size; `verify` passes the cache over and reads everything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from personality.manifests.atomic import write_bytes
from personality.manifests.canonical import digest, pretty_json
from personality.manifests.errors import PersonaError


def remembered(cache: Path | None, purpose: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """The value that `compute` gives for these files, from the cache when none of them was touched since.

    Args:
        cache: the JSON file to remember in; None to compute always.
        purpose: keeps values of different meaning apart.
        files: everything that the value depends on.
        compute: makes the value.
    """
    if cache is None:
        return compute()
    key = _key(purpose, files)
    known = _load(cache)
    if key not in known:
        known[key] = compute()
        _save(cache, known)
    return known[key]


def remember(cache: Path, purpose: str, values: Mapping[Path, str]) -> None:
    """Remember what is known already of some files, each by itself."""
    _save(cache, _load(cache) | {_key(purpose, [path]): value for path, value in values.items()})


def _key(purpose: str, files: Sequence[Path]) -> str:
    stats = [(str(path.resolve()), (s := path.stat()).st_size, s.st_mtime_ns, s.st_ino) for path in files]
    return digest([purpose, stats])


def _load(cache: Path) -> dict[str, str]:
    try:
        found = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(cache: Path, known: dict[str, str]) -> None:
    # A cache that cannot be written (read-only file system) costs time, nothing else.
    with contextlib.suppress(PersonaError):
        write_bytes(cache, pretty_json(known))
