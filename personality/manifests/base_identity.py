"""Which pretrained model everything in a repository is relative to."""

from __future__ import annotations

from pydantic import Field

from personality.manifests.canonical import digest, short
from personality.manifests.record import Frozen


class Fingerprint(Frozen):
    """What makes two bases the same base: four digests and the digest over them.

    Attributes:
        weights: over every tensor's name, dtype, shape and content.
        config: over `config.json` without the fields that name a place or a library version.
        tokenizer: over the tokenizer's files.
        chat_template: over the chat template; of the empty text when there is none.
    """

    weights: str
    config: str
    tokenizer: str
    chat_template: str

    @property
    def id(self) -> str:
        """The digest over the four parts: what vectors and versions refer to."""
        return digest(self.as_json())

    def differences(self, other: Fingerprint) -> list[str]:
        """The names of the parts in which two fingerprints differ."""
        mine, theirs = self.as_json(), other.as_json()
        return [part.replace("_", " ") for part in mine if mine[part] != theirs[part]]


class BaseIdentity(Frozen):
    """A base as records refer to it.

    Attributes:
        source: a folder or a model id, for people; two places may hold the same base.
        revision: commit of a model id; empty for a folder.
        fingerprint: `Fingerprint.id`, the identity.
    """

    source: str
    revision: str = ""
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")

    def __str__(self) -> str:
        return f"{self.source} ({short(self.fingerprint)})"
