"""`build`: a version's checkpoint in the repository's cache, always made from the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from personality.baking.baked_weights import BakedWeights
from personality.builds.built_steering import BuiltSteering, built_steering
from personality.builds.new_folder import new_folder
from personality.builds.writer import BUILD_RECORD, DEFAULT_SHARD_BYTES, Progress, write_checkpoint
from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.environment import build_environment, build_fingerprint
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import PersonaError
from personality.manifests.record import Record
from personality.manifests.repository import Repository
from personality.manifests.version import Version


class BuildRecord(Record):
    """What a written checkpoint says of itself.

    Attributes:
        version: id of the version.
        personality: digest of what determines the weights.
        environment: see `build_environment`.
        shard_bytes: greatest size of a weights file.
        files: SHA-256 by file name.
        steering: what became of steering vectors; None when the version has none.
    """

    noun: ClassVar[str] = "build record"
    file_name: ClassVar[str] = BUILD_RECORD

    version: str
    personality: str
    environment: dict[str, str]
    shard_bytes: int
    files: dict[str, str]
    steering: BuiltSteering | None = None


def build_path(repository: Repository, version: Version) -> Path:
    """Where a version's build lies on this kind of machine."""
    fingerprint = build_fingerprint(build_environment())
    return repository.local / "builds" / f"{version.id[:16]}-{fingerprint[:8]}"


def build(
    repository: Repository,
    version: Version,
    *,
    again: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, bool]:
    """The folder of a version's checkpoint; composed from the base unless it is there already.

    Args:
        repository: where.
        version: what to build.
        again: build even when it is there.
        shard_bytes: greatest size of a weights file.
        on_progress: told of every tensor.

    Returns:
        The folder, and whether it was built now.
    """
    path = build_path(repository, version)
    if not again and _is_build_of(path, version, shard_bytes):
        return path, False
    write_build(repository, version, path, shard_bytes=shard_bytes, on_progress=on_progress)
    return path, True


def _is_build_of(path: Path, version: Version, shard_bytes: int) -> bool:
    """Whether a folder says that it is this build; one that says nothing readable is made again."""
    try:
        known = BuildRecord.read(path / BuildRecord.file_name)
    except PersonaError:
        return False
    whole = all((path / name).is_file() for name in known.files)
    return whole and known.version == version.id and known.shard_bytes == shard_bytes


def write_build(
    repository: Repository,
    version: Version,
    path: Path,
    *,
    shard_bytes: int,
    on_progress: Callable[[Progress], None] | None,
    finish: Callable[[Path], None] | None = None,
    composer: Composer | None = None,
    baked: BakedWeights | None = None,
    steering_file: str = "",
) -> None:
    """Compose a version into a folder that appears under its name only when it is whole.

    Args:
        repository: where.
        version: what to write.
        path: the folder; one that is there is replaced at the end.
        shard_bytes: greatest size of a weights file.
        on_progress: told of every tensor.
        finish: called with the temporary folder before it gets its name; what it raises cancels the whole.
        composer: of the version, where it is open already.
        baked: the composer's weights with steering baked in; None to write the composed weights alone.
        steering_file: that `finish` writes for the plugin; empty for none.
    """
    composer = composer or composer_of(repository, version.personality)
    plan = baked.plan if baked else None
    with new_folder(path) as folder:
        digests = write_checkpoint(
            baked or composer,
            folder,
            config=plan.config if plan else None,
            shard_bytes=shard_bytes,
            engine=composer.engine,
            on_progress=on_progress,
        )
        record = BuildRecord(
            version=version.id,
            personality=version.personality.id,
            environment=build_environment(),
            shard_bytes=shard_bytes,
            files=digests,
            steering=built_steering(composer.steering, plan, steering_file),
        )
        write_bytes(folder / BuildRecord.file_name, record.to_bytes())
        if finish:
            finish(folder)
