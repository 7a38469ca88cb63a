"""Which version a server serves, and whether it is what it claims to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from personality.builds.certificate import Certificate
from personality.builds.reference import Reference, reference_of
from personality.composition.opening import composer_of
from personality.manifests.errors import PersonaError
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.serving.client import Client
from personality.serving.exports import export_path
from personality.serving.served import Served, certificate_in, what_serves
from personality.serving.verification import Verification, verify

Source = Literal["cache", "computed", "folder"]


@dataclass(frozen=True)
class ServerStatus:
    """A server's account and what was found.

    Attributes:
        served: what it says.
        label: the version's label in this repository; the server's own when it is not known here.
        verification: its answers beside the version's; None when there was nothing to compare with.
        source: where the version's answers are from: the repository's `cache` of exports, `computed` now, or the
            server's own `folder`, which is not this repository's word.
        problem: why nothing could be compared; empty otherwise.
    """

    served: Served
    label: str
    verification: Verification | None
    source: Source | None
    problem: str = ""

    @property
    def true(self) -> bool:
        """Whether it serves what it claims to."""
        return self.verification is not None and self.verification.ok


def server_status(client: Client, repository: Repository | None) -> ServerStatus:
    """Ask a server what it serves, and compare its answers with that version's.

    Args:
        client: of the server.
        repository: where versions are known; None to take the certificate of the server's folder.

    Raises:
        ServerError: when the server cannot be reached.
    """
    served = what_serves(client)
    version = repository.versions().get(served.version) if repository and served.version else None
    label = version.label if version else served.name
    if served.broken:
        return ServerStatus(served, label, None, None, served.broken)
    try:
        reference, source = _reference(served, repository, version)
        found = verify(client, reference, model=served.model, dtype=served.dtype)
    except PersonaError as error:
        return ServerStatus(served, label, None, None, error.message)
    return ServerStatus(served, label, found, source)


def _reference(served: Served, repository: Repository | None, version: Version | None) -> tuple[Reference, Source]:
    """What the version answers, by this repository's word where it knows the version."""
    if repository is not None and version is not None:
        certificate = _cached(repository, version)
        if certificate is not None:
            return certificate.reference, "cache"
        return reference_of(composer_of(repository, version.personality)), "computed"
    certificate = certificate_in(served.readable_folder) if served.readable_folder else None
    if certificate is not None and certificate.version == served.version:
        return certificate.reference, "folder"
    if not served.version:
        raise PersonaError("it does not say which version it serves")
    raise PersonaError(
        f"the version {served.version[:16]} is not in this repository, and its folder cannot be read from here"
    )


def _cached(repository: Repository, version: Version) -> Certificate | None:
    for plugin in (True, False):
        found = certificate_in(export_path(repository, version, plugin=plugin))
        # The label and the id may be anything; what determines the answers must be this version's.
        if found is not None and found.version == version.id and found.personality == version.personality.id:
            return found
    return None
