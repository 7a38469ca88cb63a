"""Pairs of plain texts or whole chats: `positive` and `negative`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from personality.manifests.errors import DataError
from personality.vectors.extraction.passages import Pair, passage_of
from personality.vectors.extraction.records import Record, fields
from personality.vectors.training.examples import parse_text

TEXTS_FORM: Final = 'a line is {"positive": …, "negative": …}, each a string or a list of messages'


def text_pairs(records: Sequence[Record]) -> list[Pair]:
    """Pairs from objects with `positive` and `negative`.

    Args:
        records: from `read_records`. A list of messages that ends with the assistant's turn is a prompt with
            its reply, any other one a prompt; a string is read as it stands.

    Raises:
        DataError: a field is missing or malformed, or the two sides are of different forms or the same.
    """
    return [_pair(record) for record in records]


def _pair(record: Record) -> Pair:
    where = record.where
    texts = fields(record, "positive", "negative", form=TEXTS_FORM)
    if "prompt" in record.value:
        raise DataError(
            f"{where}: `prompt` beside `positive` and `negative`",
            "name the two replies `chosen` and `rejected`, or put the prompt into both texts",
        )
    whats = [f"{where}: `positive`", f"{where}: `negative`"]
    passages = [passage_of(parse_text(text, what), what) for text, what in zip(texts, whats, strict=True)]
    positive, negative = passages
    if isinstance(positive.prompt, str) != isinstance(negative.prompt, str):
        raise DataError(f"{where}: a chat on one side and a plain text on the other", "use the same form for both")
    if (positive.response is None) != (negative.response is None):
        raise DataError(
            f"{where}: only one side ends with the assistant's turn", "end both with a reply, or both without one"
        )
    return Pair(positive, negative, where=where)
