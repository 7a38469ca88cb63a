"""Token positions by meaning: which of a model's hidden states stand for a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.extraction.spans import (
    closing_ids,
    common_length,
    prompt_ids,
    reply_span,
    special_ids,
    visible_stop,
)
from personality.vectors.training.tokens import Tokenizer, encode

Read = Literal["response", "content", "first", "decision", "divergence"]
"""Where to read:

- `response`: the mean over the reply's tokens, without the end-of-turn token and what the template adds behind;
- `content`: the last of these tokens; of a plain text without a reply, its very last token;
- `first`: the first of these tokens;
- `decision`: the last token of the prompt, which predicts the reply's first one;
- `divergence`: the last token before the two replies of a pair part.
"""


@dataclass(frozen=True)
class Reading:
    """What represents one text: the mean of the hidden states at token positions start … stop − 1.

    Attributes:
        ids: the text's tokens up to `stop`; a causal model's states there depend on no later ones.
        start: first position.
        stop: after the last position; equals len(ids).
    """

    ids: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class ReadPair:
    """The two sides of a pair, and "file:line"."""

    positive: Reading
    negative: Reading
    where: str


def read_pairs(
    tokenizer: Tokenizer, pairs: Sequence[Pair], read: Read, *, max_length: int
) -> tuple[list[ReadPair], list[str]]:
    """Find in each pair the positions to read.

    Args:
        tokenizer: of the model, with a chat template when passages are chats.
        pairs: any number.
        read: the position, by meaning.
        max_length: most tokens of a passage as the model would see it, template and all.

    Returns:
        The pairs, in order; and one line, "file:line: why", for each degenerate pair that is not among them:
        both its sides are the same tokens up to where they are read, so that a causal model has the same
        states there.

    Raises:
        UsageError: no such position.
        DataError: there are no pairs, or only degenerate ones; a passage is too long, is empty, lacks the reply
            to be read, or would be read at a special token that the template or the text's end brings along.
    """
    if read not in get_args(Read):
        raise UsageError(f"no position `{read}`", f"positions are {', '.join(f'`{name}`' for name in get_args(Read))}")
    if not pairs:
        raise DataError("no pairs to read", "give at least one")
    finder = _Finder(tokenizer, read, max_length)
    found: list[ReadPair] = []
    degenerate: list[str] = []
    for number, pair in enumerate(pairs, start=1):
        where = pair.where or f"pair {number}"
        sides = finder.divergence(pair, where) if read == "divergence" else finder.sides(pair, where)
        if sides is None:
            degenerate.append(f"{where}: both replies are the same tokens, so they nowhere part")
        elif sides[0] == sides[1]:
            what = "the same tokens" if read in ("response", "content") else "the same tokens up to there"
            degenerate.append(f"{where}: both sides are {what} ({sides[0].stop}), read at `{read}`")
        else:
            found.append(ReadPair(*sides, where))
    if not found:
        raise DataError(
            f"nothing to tell the sides apart: in all {len(pairs)} pairs both are the same tokens up to where "
            f"`{read}` reads; {degenerate[0]}",
            _way_out(pairs, read),
        )
    return found, degenerate


def read_passages_alone(
    tokenizer: Tokenizer, passages: Sequence[Passage], read: Read, *, max_length: int
) -> list[Reading]:
    """Find the positions to read in single texts, which are not compared with another side.

    Args:
        tokenizer, max_length: see `read_pairs`.
        passages: any number.
        read: any position but `divergence`, which takes two replies.

    Raises:
        UsageError, DataError: see `read_pairs`.
    """
    if read == "divergence":
        raise UsageError("`divergence` is where two replies part: a single text has none", "read at `decision`")
    finder = _Finder(tokenizer, read, max_length)
    return [finder.side(passage, f"text {number}") for number, passage in enumerate(passages, start=1)]


class _Finder:
    """Finds one kind of position in the texts of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, read: Read, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.read = read
        self.max_length = max_length
        self.specials = special_ids(tokenizer)
        self.closing = closing_ids(tokenizer, self.specials)

    def sides(self, pair: Pair, where: str) -> tuple[Reading, Reading]:
        return self.side(pair.positive, where), self.side(pair.negative, where)

    def divergence(self, pair: Pair, where: str) -> tuple[Reading, Reading] | None:
        """On either side the last token that its two possible replies share; None when they never part."""
        chosen, rejected = pair.positive.response, pair.negative.response
        if chosen is None or rejected is None:
            raise self._no_reply(where)
        readings = []
        for passage in (pair.positive, pair.negative):
            one, other = (
                encode(self.tokenizer, passage.prompt, reply, self.max_length, where=where).ids
                for reply in (chosen, rejected)
            )
            shared = common_length(one, other)  # at least the prompt's tokens, of which `encode` makes sure
            if one == other:
                return None
            readings.append(Reading(one[:shared], shared - 1, shared))
        return readings[0], readings[1]

    def side(self, passage: Passage, where: str) -> Reading:
        if self.read == "decision":
            return self._last_of_prompt(passage, where)
        if passage.response is None:
            if self.read == "content" and isinstance(passage.prompt, str):
                return self._last_of_text(passage.prompt, self.specials, where)
            raise self._no_reply(where)
        span = reply_span(self.tokenizer, passage.prompt, passage.response, self.specials, self.max_length, where=where)
        start, stop = span.start, span.stop
        if self.read == "first":
            stop = start + 1
        elif self.read == "content":
            start = stop - 1
        # The mean may have special tokens inside, as a name of one in the text; at an end they are a template's.
        if special := self.specials & {span.ids[start], span.ids[stop - 1]}:
            raise DataError(
                f"{where}: `{self.read}` would read the special token {self._token(special)}, which is the "
                "template's and alike in all texts, instead of what the reply says",
                "leave the template's tokens out of the replies: the chat template puts them there",
            )
        return Reading(span.ids[:stop], start, stop)

    def _last_of_prompt(self, passage: Passage, where: str) -> Reading:
        if passage.response is None and isinstance(passage.prompt, str):
            # A header such as <|assistant|> may end the text, since a reply can follow it; an end of turn may not.
            return self._last_of_text(passage.prompt, self.closing, where)
        ids = prompt_ids(self.tokenizer, passage.prompt, self.max_length, where=where)
        return Reading(ids, len(ids) - 1, len(ids))

    def _last_of_text(self, text: str, refused: frozenset[int], where: str) -> Reading:
        ids = prompt_ids(self.tokenizer, text, self.max_length, where=where)
        end = visible_stop(self.tokenizer, ids, self.specials)
        if end == 0:
            raise DataError(f"{where}: the text is only white space", "give it a text or remove the line")
        if ids[end - 1] in refused:
            raise DataError(
                f"{where}: the text ends with the special token {self._token({ids[end - 1]})}, so `{self.read}` would "
                "read a template that is alike in all texts, instead of what the text says",
                "remove the tokens at the end of the texts; or give chats (lists of messages), whose replies are "
                "found inside the template",
            )
        return Reading(ids, len(ids) - 1, len(ids))

    def _token(self, ids: set[int] | frozenset[int]) -> str:
        return f"{self.tokenizer.convert_ids_to_tokens(min(ids))!r}"

    def _no_reply(self, where: str) -> DataError:
        return DataError(
            f"{where}: `{self.read}` reads a reply, and this passage has none",
            "read its last token with `--read decision`, or give replies",
        )


def _way_out(pairs: Sequence[Pair], read: Read) -> str:
    if read in ("decision", "divergence", "first") and any(pair.same_prompt for pair in pairs):
        return (
            "the prompts are the same, and only the replies differ: give the sides different contexts with "
            "`--context shots` or system prompts, or read the replies with `--read content`"
        )
    return "give pairs whose sides differ before the position that is read"
