"""A folder that an export makes: never over somebody's files, whole or not there, and saying what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from personality.manifests.atomic import write_bytes
from personality.manifests.errors import PersonaError
from personality.manifests.record import Record
from personality.manifests.tensor_file import digest_file


class ExportRecord(Record):
    """What an exported folder that is no model folder says of itself.

    Attributes:
        target: what it is for, such as `lora`.
        version: id of the version.
        personality: digest of what determines it.
        base: the base's fingerprint.
        facts: figures of the export, JSON data.
        files: SHA-256 by name, relative to the folder.
    """

    noun: ClassVar[str] = "export record"
    mend: ClassVar[str] = "export the version again"
    file_name: ClassVar[str] = "persona-export.json"

    target: str
    version: str
    personality: str
    base: str
    facts: dict[str, Any]
    files: dict[str, str]


def check_free(path: Path, target: str, *, force: bool) -> None:
    """Make sure that an export may be written at a path.

    Args:
        path: the folder to make.
        target: what it will be for.
        force: an earlier export for the same target may be replaced.

    Raises:
        PersonaError: when something else lies there, or something in it that the export did not write.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    name = path / ExportRecord.file_name
    record = ExportRecord.read(name) if name.is_file() else None
    if record is None or record.target != target:
        raise PersonaError(
            f"{path} exists and is no export of this program for `{target}`", "choose a new folder; nothing was touched"
        )
    present = {item.relative_to(path).as_posix() for item in path.rglob("*") if not item.is_dir()}
    foreign = sorted(present - {*record.files, ExportRecord.file_name})
    if foreign:
        raise PersonaError(
            f"{path} holds an earlier export and things of yours, such as {foreign[0]}",
            "take them out of there, or choose a new folder; nothing was touched",
        )
    if not force:
        raise PersonaError(f"{path} holds an earlier export", "replace it with `--force`, or choose a new folder")


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and below, by its name relative to the folder, sorted."""
    paths = sorted(item for item in folder.rglob("*") if item.is_file())
    return {item.relative_to(folder).as_posix(): digest_file(item) for item in paths}


def write_record(folder: Path, record: ExportRecord) -> None:
    """Write the record, last of all."""
    write_bytes(folder / ExportRecord.file_name, record.to_bytes())
