"""What a server served before a run began to publish to it: there it is taken back."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from personality.builds.build import BuildRecord
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import IncompatibleError, PersonaError
from personality.manifests.record import Record
from personality.manifests.repository import Repository
from personality.serving.client import Client
from personality.serving.served import what_serves


class Earlier(Record):
    """The record beside a run's snapshots, so that a run that is killed does not take the knowledge with it.

    Attributes:
        url: of the server.
        version: id of the version that it served.
        label: its label.
        folder: its export.
        plugin: whether the server has the plugin, and the export leaves steering to it.
    """

    noun: ClassVar[str] = "record of what was served before"
    file_name: ClassVar[str] = "earlier.json"

    url: str
    version: str
    label: str
    folder: Path
    plugin: bool

    def write(self, folder: Path) -> None:
        """Write the record into a folder of snapshots."""
        write_bytes(folder / self.file_name, self.to_bytes())

    @classmethod
    def of_killed_run(cls, snapshots: Path, url: str) -> Self | None:
        """The newest record of a server among the snapshots of runs that never came to their end."""
        found = []
        for path in snapshots.glob(f"*/{cls.file_name}"):
            try:
                record = cls.read(path)
            except PersonaError:
                continue
            if record.url == url and record.folder.is_dir():
                found.append((path.stat().st_mtime, record))
        return max(found, key=lambda item: item[0])[1] if found else None


def live_folder(repository: Repository) -> Path:
    """Where the snapshots of all runs lie, one folder a run."""
    return repository.local / "live"


def find_earlier(repository: Repository, client: Client) -> Earlier:
    """What a server serves without any run, checked for what publishing to it takes.

    Raises:
        ServerError: it cannot be reached.
        IncompatibleError: it serves another base.
        PersonaError: it cannot be switched, or nobody could take it back.
    """
    served = what_serves(client)
    base = repository.config().base.fingerprint
    if served.base and served.base != base:
        raise IncompatibleError(
            f"{client.url} serves the base {served.base[:16]}, this repository uses {base[:16]}",
            "give the server of this repository: `persona serve head`",
        )
    if served.way == "none":
        raise PersonaError(
            f"{client.url} cannot be switched while it runs", "start it with `persona serve head`, then train"
        )
    folder, snapshots = served.readable_folder, live_folder(repository)
    if folder is not None and not (folder.parent / Earlier.file_name).is_file():
        return Earlier(
            url=client.url,
            version=served.version,
            label=served.name,
            folder=folder.absolute(),
            plugin=served.way == "plugin" and not _baked(folder),
        )
    # A run that was killed left its snapshot there; one that was to stay is an export like others.
    known = Earlier.of_killed_run(snapshots, client.url)
    if known is None:
        raise PersonaError(
            f"{client.url} serves {served.name} from {served.folder or 'a folder that it does not tell'}, to which it "
            "could not be taken back",
            "deploy a version of this repository first: `persona deploy head --server URL`",
        )
    return known


def _baked(folder: Path) -> bool:
    """Whether an export has steering vectors in its weights: what takes its place must have them there too."""
    steering = BuildRecord.read(folder / BuildRecord.file_name).steering
    return steering is not None and steering.baked
