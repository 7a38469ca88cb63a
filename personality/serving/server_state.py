"""What `persona serve` notes about its server beside the exports: who runs, where, and which version to start again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlsplit

from personality.builds.certificate import Certificate
from personality.manifests.atomic import write_bytes
from personality.manifests.errors import PersonaError, UsageError
from personality.manifests.record import Record

_LOCAL = ("127.0.0.1", "localhost", "::1")


class ServerState(Record):
    """The record `server-PORT.json` in the folder of exports.

    Attributes:
        url: of the server.
        pid: process id of the `persona serve` that supervises it.
        vllm_pid: process id of its vLLM; 0 between two.
        version: id of the last version that the server was seen to serve.
        label: its label.
        folder: its export, from which vLLM starts again.
        dtype: in which vLLM computes.
        plugin: whether the plugin is loaded.
        restarts: how many times vLLM had to be started again.
        log: file with what vLLM prints.
    """

    noun: ClassVar[str] = "server record"

    url: str
    pid: int
    vllm_pid: int = 0
    version: str
    label: str
    folder: str
    dtype: str
    plugin: bool
    restarts: int = 0
    log: str

    @staticmethod
    def path(folder: Path, port: int) -> Path:
        """Where the record of a port lies in a folder of exports."""
        return folder / f"server-{port}.json"

    @classmethod
    def beside(cls, model_folder: Path, url: str) -> Self | None:
        """The record of the running supervisor of a server on this machine, by the folder its vLLM was started with."""
        parts = urlsplit(url)
        if parts.hostname not in _LOCAL:
            return None
        return cls.running(model_folder.parent, parts.port or 80)

    @classmethod
    def running(cls, folder: Path, port: int) -> Self | None:
        """The record of a port in a folder of exports; None when its supervisor does not run anymore."""
        try:
            found = cls.read(cls.path(folder, port))
        except PersonaError:
            return None
        return found if _alive(found.pid) else None

    def write(self, folder: Path) -> None:
        """Write the record, whole."""
        port = urlsplit(self.url).port or 80
        write_bytes(self.path(folder, port), self.to_bytes())

    def serving(self, certificate: Certificate, folder: Path) -> None:
        """Note that the server was seen to serve an export: from then on vLLM is started again with that one.

        The record is read again, since the supervisor writes it too.
        """
        where, port = Path(self.log).parent, urlsplit(self.url).port or 80
        now = self.running(where, port)
        if now is not None and now.pid == self.pid:
            known = {"version": certificate.version, "label": certificate.label, "folder": str(folder.absolute())}
            now.model_copy(update=known).write(where)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def server_url(folder: Path) -> str:
    """The URL of the one server whose record lies in a folder of exports.

    Raises:
        UsageError: when none runs from there, or several do.
    """
    ports = [int(path.stem.removeprefix("server-")) for path in sorted(folder.glob("server-*.json"))]
    found = [state for state in (ServerState.running(folder, port) for port in ports) if state is not None]
    if len(found) == 1:
        return found[0].url
    if found:
        raise UsageError(
            f"several servers run from this repository: {', '.join(state.url for state in found)}",
            "say which: `--server URL`",
        )
    raise UsageError(
        "no server runs from this repository", "start one: `persona serve VERSION`; or say which: `--server URL`"
    )
