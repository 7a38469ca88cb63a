"""The repository's cache of exports that servers load: made once a version, used again while whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from personality.builds.build import BuildRecord
from personality.builds.export import export
from personality.manifests.errors import PersonaError
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.serving.served import certificate_in


def exports_folder(repository: Repository) -> Path:
    """Where exports for servers lie, with the records and logs of servers."""
    return repository.local / "serving"


def export_path(repository: Repository, version: Version, *, plugin: bool) -> Path:
    """Where the export of a version lies: with steering left to the plugin, or baked into the weights.

    A version that does not steer has one export for both.
    """
    path = exports_folder(repository) / version.id[:16]
    certificate = certificate_in(path)
    if plugin or (certificate is not None and not certificate.needs_plugin):
        return path
    return path.with_name(f"{path.name}-baked")


def export_for_server(
    repository: Repository,
    version: Version,
    *,
    plugin: bool,
    bake_unproven: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> tuple[Path, bool]:
    """The export of a version for a server; made unless it is there, whole, already.

    Args:
        repository: where.
        version: what to serve.
        plugin: whether the server has the plugin, which then does all steering; otherwise it is baked.
        bake_unproven: bake steering vectors too that nobody proved.
        on_stage: told what is being done.

    Returns:
        The folder, and whether it was made now.

    Raises:
        PersonaError: when the version cannot be exported so.
    """
    path = export_path(repository, version, plugin=plugin)
    if is_whole(path, version):
        return path, False
    path.parent.mkdir(parents=True, exist_ok=True)
    export(
        repository,
        version,
        "vllm",
        path,
        force=True,
        steering="plugin" if plugin else "bake",
        bake_unproven=bake_unproven,
        on_stage=on_stage,
    )
    return path, True


def is_whole(path: Path, version: Version) -> bool:
    """Whether a folder says that it is the export of a version, with all of its files."""
    try:
        record = BuildRecord.read(path / BuildRecord.file_name)
    except PersonaError:
        return False
    certificate = certificate_in(path)
    if certificate is None or certificate.version != version.id or record.version != version.id:
        return False
    names = [*record.files, *([certificate.steering_file] if certificate.steering_file else [])]
    return all((path / name).is_file() for name in names)
