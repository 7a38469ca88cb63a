"""Deploying a version of a repository: everything that can be wrong is looked at before the server is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from personality.manifests.errors import IncompatibleError
from personality.manifests.lock import locked
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.serving.client import Client, ServerError
from personality.serving.deploy import WAIT_SECONDS, Deployed, deploy
from personality.serving.exports import export_for_server, export_path, exports_folder, is_whole
from personality.serving.served import Served, what_serves


def deploy_version(
    repository: Repository,
    version: Version,
    client: Client,
    *,
    seen_as: Path | None = None,
    wait_s: float = WAIT_SECONDS,
    bake_unproven: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> Deployed:
    """Export a version into the repository's cache and switch a running server to it.

    Args:
        repository: where.
        version: what to serve.
        client: of the server.
        seen_as: the export's path as the server's machine sees it, where it is another one.
        wait_s: how long requests under way may take, seconds.
        bake_unproven: bake steering vectors too that nobody proved, where the server has no plugin.
        on_stage: told what is being done.

    Raises:
        PersonaError: as `deploy` does; or the version cannot be exported, and the server was not touched.
    """
    told = on_stage or (lambda stage: None)
    served = what_serves(client)
    _check(version, served, client)
    plugin = served.way == "plugin"
    with locked(exports_folder(repository) / "deploy.lock", doing="deploying from this repository"):
        folder, _ = export_for_server(
            repository,
            version,
            plugin=plugin,
            bake_unproven=bake_unproven,
            on_stage=lambda stage: told(f"{version.label}: {stage}"),
        )
        known = repository.versions().get(served.version)
        old = export_path(repository, known, plugin=plugin) if known else None
        back = old if old and known and is_whole(old, known) else None
        return deploy(client, folder, back=back, seen_as=seen_as, wait_s=wait_s, on_stage=on_stage)


def _check(version: Version, served: Served, client: Client) -> None:
    """What can be told before anything is composed."""
    base = version.personality.base
    if served.base and served.base != base.fingerprint:
        raise IncompatibleError(
            f"{client.url} serves the base {served.base[:16]}, {version.label} is for {base}",
            "deploy to a server of that base, or start one with `persona serve`; nothing was touched",
        )
    if served.switching:
        raise ServerError(f"{client.url} is being switched by somebody else", "wait until that is done", untouched=True)
