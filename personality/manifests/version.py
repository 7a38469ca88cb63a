"""A version: an immutable personality with parents, message and time."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from personality.manifests.canonical import digest
from personality.manifests.personality_record import Personality
from personality.manifests.record import Record


class Version(Record):
    """The record of one version; its file is `versions/<id>.json`.

    Attributes:
        id: digest of all other fields.
        number: largest parent's number + 1; `v<number>` is the label.
        parents: ids of the versions it was made from; empty for the first.
        personality: what it is.
        message: why, in the author's words or the command's.
        time: when, ISO 8601 in UTC.
    """

    noun: ClassVar[str] = "version"

    id: str
    number: int = Field(ge=1)
    parents: tuple[str, ...]
    personality: Personality
    message: str
    time: str

    @property
    def label(self) -> str:
        """Such as `v4`."""
        return f"v{self.number}"

    @classmethod
    def make(cls, *, number: int, parents: tuple[str, ...], personality: Personality, message: str, time: str) -> Self:
        """A version with the id that its fields give."""
        draft = cls.model_construct(
            id="", number=number, parents=parents, personality=personality, message=message, time=time
        )
        return cls(
            id=draft._digest(),
            number=number,
            parents=parents,
            personality=personality,
            message=message,
            time=time,
        )

    def _digest(self) -> str:
        fields = self.as_json()
        del fields["id"]
        return digest(fields)

    @model_validator(mode="after")
    def _id_is_digest(self) -> Self:
        if self.id != self._digest():
            raise ValueError(f"its id {self.id} is not the digest of its fields ({self._digest()}): it was changed")
        return self
