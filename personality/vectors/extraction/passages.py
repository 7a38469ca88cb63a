"""What a direction is extracted from: pairs of texts that differ in the behavior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from personality.manifests.canonical import digest
from personality.manifests.errors import DataError
from personality.vectors.training.examples import Side, Text, plain_text


@dataclass(frozen=True)
class Passage:
    """One text that the model reads.

    Attributes:
        prompt: chat messages, or plain text.
        response: the reply, of the prompt's form: one assistant message, or plain text. None when there is no
            reply: then the prompt is all that the model reads.
    """

    prompt: Text
    response: Text | None = None


@dataclass(frozen=True)
class Pair:
    """Two passages, one with the behavior and one without it.

    Attributes:
        positive: shows the behavior, or asks for it.
        negative: the opposite.
        side: of a training triplet: what its chosen reply does with the user's direction.
        where: "file:line" for messages; not part of the pair's identity.
    """

    positive: Passage
    negative: Passage
    side: Side | None = None
    where: str = field(default="", compare=False)

    @property
    def same_prompt(self) -> bool:
        """Whether the two sides differ in their replies only."""
        return self.positive.prompt == self.negative.prompt

    def to_record(self) -> dict[str, Any]:
        """The pair as one JSON object, the same for the same pair whatever file it came from."""
        record: dict[str, Any] = {}
        for name, passage in (("positive", self.positive), ("negative", self.negative)):
            record[name] = {"prompt": plain_text(passage.prompt)}
            if passage.response is not None:
                record[name]["response"] = plain_text(passage.response)
        if self.side is not None:
            record["side"] = self.side
        return record


def digest_pairs(pairs: Sequence[Pair]) -> str:
    """Digest of pairs: the same pairs in the same order, whatever the file's format.

    Returns:
        SHA-256 in hex over the canonical JSON of all records.
    """
    return digest([pair.to_record() for pair in pairs])


def passage_of(text: Text, what: str) -> Passage:
    """A text as a passage: the last turn of a chat is its reply where the assistant says it.

    Args:
        text: a plain text, or messages.
        what: "file:line: `field`", for messages.

    Raises:
        DataError: a chat begins with the assistant, or its reply is empty.
    """
    if isinstance(text, str) or text[-1].role != "assistant":
        return Passage(text)
    if len(text) == 1:
        raise DataError(f"{what} begins with the assistant", "begin with the user's turn: a reply answers something")
    if not text[-1].content.strip():
        raise DataError(f"{what} ends with an empty reply", "give it a text or remove the line")
    return Passage(text[:-1], text[-1:])


def on_side(pairs: Sequence[Pair], side: Side | Literal["both"] = "accept") -> list[Pair]:
    """The pairs whose contrast points into one direction.

    A behavior such as `listening` is judgment: where the direction given is harmful, the chosen reply is the
    one that pushes back. On the surface that is the opposite of what is chosen elsewhere, so that the two
    sides of the data would cancel out in one direction.

    Args:
        pairs: of one behavior.
        side: keep this side, and the pairs that name none; `both` keeps all.

    Returns:
        The pairs kept, in order.

    Raises:
        DataError: none is left.
    """
    kept = [pair for pair in pairs if side == "both" or pair.side in (None, side)]
    if not kept:
        raise DataError(
            f"none of the {len(pairs)} pairs is on the side `{side}`",
            "add pairs of that side, or take them all with `--side both`",
        )
    return kept
