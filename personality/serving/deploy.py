"""`deploy`: a running server switched to another version, checked over HTTP, and switched back when that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from personality.builds.certificate import Certificate
from personality.manifests.errors import PersonaError
from personality.serving.client import Client, ServerError
from personality.serving.fitting import check_fits
from personality.serving.served import Served, certificate_in, what_serves
from personality.serving.switching import Target, switch
from personality.serving.verification import Verification, tells_apart, verify

WAIT_SECONDS = 30.0


class DeployError(PersonaError):
    """A switch failed.

    Attributes:
        restored: whether the version before serves again, as verified over HTTP; None when nobody could ask.
    """

    kind = "deploy"

    def __init__(self, message: str, hint: str = "", *, restored: bool | None) -> None:
        super().__init__(message, hint)
        self.restored = restored


@dataclass(frozen=True)
class Deployed:
    """A finished switch.

    Attributes:
        version, label: what serves now.
        before: what served before, and how the server is switched.
        seconds: the switch itself, from the first request to the server's yes.
        verification: the served answers beside the version's own.
        sharp: whether these tell the version from the one before; None where that is not known.
    """

    version: str
    label: str
    before: Served
    seconds: float
    verification: Verification
    sharp: bool | None


def deploy(
    client: Client,
    folder: Path,
    *,
    back: Path | None = None,
    seen_as: Path | None = None,
    wait_s: float = WAIT_SECONDS,
    on_stage: Callable[[str], None] | None = None,
) -> Deployed:
    """Switch a running server to an export for vLLM, and back when its answers are not the version's.

    Args:
        client: of the server.
        folder: the export, with its certificate.
        back: export of what serves now, to return to; the folder that the server names unless told.
        seen_as: the export's path as the server's machine sees it, where it is another one.
        wait_s: how long the server may take to finish requests that are under way, seconds.
        on_stage: told what is being done.

    Raises:
        IncompatibleError: the server serves another base, or was started for other tensors; it was not touched.
        DeployError: the switch failed; says what serves now.
        ServerError: the server cannot be reached, or takes no versions; it was not touched.
    """
    told = on_stage or (lambda stage: None)
    certificate = Certificate.read(folder / Certificate.file_name)
    before = what_serves(client)
    previous = back or before.readable_folder
    check_fits(folder, certificate, before, previous)
    target = Target(str((seen_as or folder).absolute()), certificate.version, certificate.label)
    switching = _Switching(client, before, previous, certificate, wait_s)
    told(f"switching from {before.name} to {certificate.label}")
    started = time.monotonic()
    try:
        switch(client, before.way, target, switching.back, wait_s=wait_s)
    except ServerError as error:
        raise switching.failed(error) from error
    seconds = time.monotonic() - started
    told("comparing what it serves with the version")
    try:
        found = verify(client, certificate.reference, model=before.model, dtype=before.dtype)
        problem = "" if found.ok else str(found)
    except ServerError as error:
        if error.lost:
            raise switching.failed(error) from error
        problem = error.message
    if problem:
        told(f"what it serves is not {certificate.label}: switching back")
        raise switching.rolled_back(problem)
    if before.state is not None:
        before.state.serving(certificate, folder)
    return Deployed(certificate.version, certificate.label, before, seconds, found, switching.sharp())


class _Switching:
    """One attempt to switch: the way back, and what to say when it failed."""

    def __init__(
        self, client: Client, before: Served, previous: Path | None, wanted: Certificate, wait_s: float
    ) -> None:
        self._client = client
        self._before = before
        self._old = certificate_in(previous) if previous else None
        self._wanted = wanted
        self._wait_s = wait_s
        folder = before.folder or (str(previous.absolute()) if previous else "")
        self.back = Target(folder, before.version, before.name) if folder else None

    def failed(self, error: ServerError) -> PersonaError:
        """The switch did not go through; whoever made it has loaded the version before again, unless it died."""
        if error.untouched:
            return error
        if error.lost:
            watched = self._before.state
            return DeployError(
                f"the server was lost while it switched to {self._wanted.label}: {error.message}",
                f"`persona serve` (process {watched.pid}) starts it again with {watched.label}: "
                f"`persona status --server {self._client.url}`"
                if watched
                else f"start it again: `persona serve {self._before.name}`",
                restored=None,
            )
        return self._told(
            f"the server did not switch to {self._wanted.label}: {error.detail or error.message}", error.hint
        )

    def rolled_back(self, problem: str) -> DeployError:
        """What is served is not the version: load the one before again."""
        what = f"the server's answers are not those of {self._wanted.label}: {problem}"
        if self.back is None:
            return DeployError(
                f"{what}; there is no folder to go back to", "deploy a version that it can serve", restored=False
            )
        try:
            switch(self._client, self._before.way, self.back, None, wait_s=self._wait_s)
        except ServerError as error:
            return DeployError(
                f"{what}; going back to {self.back.label} failed too: {error.message}",
                f"start the server again: `persona serve {self.back.label}`",
                restored=False,
            )
        return self._told(what)

    def _told(self, what: str, hint: str = "") -> DeployError:
        """The error, with what serves now."""
        name, status = self._before.name, f"`persona status --server {self._client.url}`"
        if self._old is None:
            return DeployError(
                f"{what}; it was told to go back to {name}", f"see whether it did: {status}", restored=None
            )
        try:
            found = verify(self._client, self._old.reference, model=self._before.model, dtype=self._before.dtype)
            problem = "" if found.ok else str(found)
        except ServerError as error:
            problem = error.message
        if problem:
            return DeployError(
                f"{what}; and it does not serve {name} either: {problem}",
                f"start it again: `persona serve {name}`",
                restored=False,
            )
        return DeployError(
            f"{what}; {name} serves, as verified",
            hint
            or "look at the server's log, and for damage with `persona verify`; where the server sees the folder under "
            "another path, give that with `--vllm-folder`",
            restored=True,
        )

    def sharp(self) -> bool | None:
        """Whether the verification tells the version from the one before; None where that one is not known."""
        if self._old is None or self._old.version == self._wanted.version:
            return None
        return tells_apart(self._wanted.reference, self._old.reference, self._before.dtype)
