"""Keeping a vLLM running on a version: started, verified, watched, started again, ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from personality.builds.certificate import Certificate
from personality.manifests.errors import CorruptError, PersonaError
from personality.serving.client import Client, ServerError
from personality.serving.served import certificate_in, what_serves
from personality.serving.server_state import ServerState
from personality.serving.verification import Verification, verify
from personality.serving.vllm_server import ServerOptions, VllmServer

_START_SECONDS = 1800.0
_POLL_SECONDS = 0.25
_HEALTH_SECONDS = 5.0
_SILENT_SECONDS = 120.0
"""After which a vLLM that runs but does not answer `/health` is started again."""
_LASTING_SECONDS = 60.0
"""A vLLM that ran this long has started well: the next wait is short again."""
_TRIES = 6
_LONGEST_WAIT = 30.0


@dataclass(frozen=True)
class Ready:
    """A server that answers as its version does.

    Attributes:
        state: as written to the record.
        seconds: from the start of vLLM to its first verified answer.
        verification: of its answers.
    """

    state: ServerState
    seconds: float
    verification: Verification


class _StoppedError(Exception):
    """Somebody asked to stop while vLLM was starting."""


class Supervisor:
    """One supervised server.

    Args:
        options: how vLLM is to serve.
        folder: the export to start with.
        exports: where the record and the log lie.
        on_event: told in words what happens.
        on_ready: told each time that the server answers as its version does.
    """

    def __init__(
        self,
        options: ServerOptions,
        folder: Path,
        exports: Path,
        *,
        on_event: Callable[[str], None],
        on_ready: Callable[[Ready], None],
    ) -> None:
        self._options = options
        self._first_folder = folder
        self._exports = exports
        self._on_event = on_event
        self._on_ready = on_ready
        self._client = Client(options.url, key=options.key)
        self._log = exports / f"server-{options.port}.log"
        self._restarts = 0

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; then vLLM and all of its processes have ended.

        Raises:
            PersonaError: when vLLM does not start the first time, or again and again.
        """
        self._log.unlink(missing_ok=True)
        tries = 0
        try:
            while not stop.is_set():
                lasted, problem = self._serve_once(stop)
                if stop.is_set():
                    return
                tries = 1 if lasted >= _LASTING_SECONDS else tries + 1
                if problem is not None and ((self._restarts == 0 and lasted == 0) or tries >= _TRIES):
                    raise problem
                wait = min(2.0 ** (tries - 1), _LONGEST_WAIT)
                self._on_event(f"{problem.message if problem else 'it ended'}; starting it again in {wait:g} s")
                self._restarts += 1
                stop.wait(wait)
        finally:
            ServerState.path(self._exports, self._options.port).unlink(missing_ok=True)

    def _serve_once(self, stop: threading.Event) -> tuple[float, PersonaError | None]:
        """Start vLLM and watch it to its end: the seconds that it served, and why it ended."""
        folder, certificate = self._to_serve()
        server = VllmServer(
            self._options.command(folder, certificate.serve_with),
            self._options.variables(),
            self._options.environment.python,
            self._log,
        )
        ready_at = 0.0
        try:
            self._write(folder, certificate, server.pid)
            self._on_event(f"loading {certificate.label} into vLLM (log: {self._log})")
            ready = self._become_ready(server, folder, certificate, stop)
            self._on_ready(ready)
            ready_at = time.monotonic()
            problem = self._watch(server, stop)
        except _StoppedError:
            return 0.0, None
        except PersonaError as error:
            problem = error
        finally:
            server.stop()
        return (time.monotonic() - ready_at if ready_at else 0.0), problem

    def _to_serve(self) -> tuple[Path, Certificate]:
        """The export that was verified last; the first one when that is gone."""
        known = ServerState.running(self._exports, self._options.port)
        if known is not None and known.pid == os.getpid():
            certificate = certificate_in(Path(known.folder))
            if certificate is not None:
                return Path(known.folder), certificate
        return self._first_folder, Certificate.read(self._first_folder / Certificate.file_name)

    def _write(self, folder: Path, certificate: Certificate, vllm_pid: int) -> ServerState:
        state = ServerState(
            url=self._options.url,
            pid=os.getpid(),
            vllm_pid=vllm_pid,
            version=certificate.version,
            label=certificate.label,
            folder=str(folder.absolute()),
            dtype=self._options.dtype,
            plugin=self._options.plugin,
            restarts=self._restarts,
            log=str(self._log.absolute()),
        )
        state.write(self._exports)
        return state

    def _become_ready(self, server: VllmServer, folder: Path, certificate: Certificate, stop: threading.Event) -> Ready:
        started = time.monotonic()
        while not self._client.healthy():
            if stop.wait(_POLL_SECONDS):
                raise _StoppedError
            code = server.ended()
            if code is not None:
                raise PersonaError(
                    f"vLLM ended with code {code} while it loaded {certificate.label}",
                    f"its last words (all: {self._log}):\n{server.last_words()}",
                )
            if time.monotonic() - started > _START_SECONDS:
                raise PersonaError(
                    f"vLLM is not ready after {_START_SECONDS:g} s", f"its last words:\n{server.last_words()}"
                )
        if not self._options.plugin:
            self._client.ask("POST", "/update_weight_version", {"new_version": certificate.version})
        served = what_serves(self._client)
        found = verify(self._client, certificate.reference, model=served.model, dtype=self._options.dtype)
        if served.version != certificate.version or not found.ok:
            raise CorruptError(
                f"vLLM serves {served.name} otherwise than {certificate.label} answers: {found}",
                "it is stopped again; run vLLM on the export to see more: `persona export VERSION --to vllm DIR "
                "--verify`",
            )
        return Ready(self._write(folder, certificate, server.pid), time.monotonic() - started, found)

    def _watch(self, server: VllmServer, stop: threading.Event) -> PersonaError | None:
        """Wait until vLLM ends, hangs or is no longer wanted; why, unless it is the last."""
        answered = asked = time.monotonic()
        while not stop.wait(_POLL_SECONDS):
            code = server.ended()
            if code is not None:
                return PersonaError(f"vLLM ended with code {code}", f"its last words:\n{server.last_words()}")
            now = time.monotonic()
            if now - asked < _HEALTH_SECONDS:
                continue
            asked = now
            if self._client.healthy():
                answered = time.monotonic()
            elif now - answered > _SILENT_SECONDS:
                return ServerError(f"vLLM has not answered for {_SILENT_SECONDS:g} s", f"see {self._log}")
        return None
