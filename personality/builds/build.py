"""`build`: a version's checkpoint in the repository's cache, always made from the base."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from personality import __version__
from personality.baking.baked_weights import BakedWeights
from personality.builds.built_steering import BuiltSteering, built_steering
from personality.builds.new_folder import new_folder
from personality.builds.reuse import FILE_DIGEST, OtherBuild
from personality.builds.writer import BUILD_RECORD, DEFAULT_SHARD_BYTES, Progress, write_checkpoint
from personality.composition.composer import Composer
from personality.composition.engine import Engine
from personality.composition.opening import composer_of
from personality.environment import build_environment, build_fingerprint
from personality.manifests.atomic import write_bytes
from personality.manifests.digest_cache import remember
from personality.manifests.errors import PersonaError
from personality.manifests.record import Record
from personality.manifests.repository import Repository
from personality.manifests.version import Version

_LOOKED_AT = 4


@dataclass(frozen=True)
class Built:
    """Where a build lies.

    Attributes:
        path: the folder.
        new: whether it was made now.
        taken_bytes: how many bytes of weights came from another version's build.
    """

    path: Path
    new: bool
    taken_bytes: int = 0


class BuildRecord(Record):
    """What a written checkpoint says of itself.

    Attributes:
        version: id of the version.
        personality: digest of what determines the weights.
        environment: see `build_environment`.
        shard_bytes: greatest size of a weights file.
        files: SHA-256 by file name.
        steering: what became of steering vectors; None when the version has none.
        program: the version of this program that wrote it.
    """

    noun: ClassVar[str] = "build record"
    file_name: ClassVar[str] = BUILD_RECORD

    version: str
    personality: str
    environment: dict[str, str]
    shard_bytes: int
    files: dict[str, str]
    steering: BuiltSteering | None = None
    program: str = ""


def build_path(repository: Repository, version: Version, device: str = "cpu") -> Path:
    """Where a version's build lies on this kind of machine."""
    fingerprint = build_fingerprint(build_environment(device))
    return repository.local / "builds" / f"{version.id[:16]}-{fingerprint[:8]}"


def build(
    repository: Repository,
    version: Version,
    *,
    again: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    engine: Engine | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Built:
    """The folder of a version's checkpoint; composed from the base unless it is there already.

    Tensors that have the same recipe in a version that is built already are taken over from there.

    Args:
        repository: where.
        version: what to build.
        again: build even when it is there, and every tensor anew.
        shard_bytes: greatest size of a weights file.
        engine: how blocks are composed; None for the usual way.
        on_progress: told of every tensor.
    """
    engine = engine or Engine()
    path = build_path(repository, version, engine.device.type)
    if not again and _is_build_of(path, version, shard_bytes):
        return Built(path, new=False)
    composer = composer_of(repository, version.personality, engine)
    other = None if again else _most_alike(repository, composer, path, shard_bytes)
    write_build(
        repository,
        version,
        path,
        shard_bytes=shard_bytes,
        on_progress=on_progress,
        composer=composer,
        other=other,
        mode=0o444,  # builds share files: what changed one in place would change another
    )
    shards = {path / name: digest for name, digest in BuildRecord.read(path / BUILD_RECORD).files.items()}
    remember(repository.cache, FILE_DIGEST, {file: digest for file, digest in shards.items() if _is_shard(file)})
    return Built(path, new=True, taken_bytes=other.taken_bytes if other else 0)


def _is_shard(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _most_alike(repository: Repository, composer: Composer, path: Path, shard_bytes: int) -> OtherBuild | None:
    """The build, of the latest few made in this environment, that has most composed bytes in common with a composer;
    of equal ones one with such shards.
    """
    found: list[tuple[int, bool, OtherBuild]] = []
    environment, versions = build_environment(composer.engine.device.type), repository.versions()
    folders = [folder for folder in path.parent.glob(f"*{path.name[-9:]}") if not folder.name.startswith(".")]
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime)[-_LOOKED_AT:]:
        with contextlib.suppress(PersonaError):  # damaged, or of a version whose vectors are gone: no help
            record = BuildRecord.read(folder / BUILD_RECORD)
            if record.version not in versions or (record.environment, record.program) != (environment, __version__):
                continue
            theirs = composer_of(repository, versions[record.version].personality)
            if theirs.base.folder == composer.base.folder:
                other = OtherBuild(folder, record.files, repository.cache, theirs, composer)
                found.append((other.common_bytes, record.shard_bytes == shard_bytes, other))
    return max(found, key=lambda entry: entry[:2], default=(0, False, None))[2]


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
    other: OtherBuild | None = None,
    mode: int = 0o644,
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
        other, mode: see `write_checkpoint`.
    """
    composer = composer or composer_of(repository, version.personality)
    plan = baked.plan if baked else None
    with new_folder(path) as folder:
        digests = write_checkpoint(
            baked or composer,
            folder,
            config=plan.config if plan else None,
            shard_bytes=shard_bytes,
            mode=mode,
            engine=composer.engine,
            other=other,
            on_progress=on_progress,
        )
        record = BuildRecord(
            version=version.id,
            personality=version.personality.id,
            environment=build_environment(composer.engine.device.type),
            shard_bytes=shard_bytes,
            files=digests,
            steering=built_steering(composer.steering, plan, steering_file),
            program=__version__,
        )
        write_bytes(folder / BuildRecord.file_name, record.to_bytes())
        if finish:
            finish(folder)
