from __future__ import annotations

from typing import Any

import pytest

from personality.manifests.errors import DataError
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.extraction.records import Record
from personality.vectors.extraction.texts import text_pairs
from personality.vectors.training.examples import Message

USER = {"role": "user", "content": "Hi."}
REPLY = {"role": "assistant", "content": "Hello!"}


def test_strings_stay_whole_and_chats_are_split() -> None:
    records = [
        Record({"positive": "I love it", "negative": "I hate it", "id": 3}, "f:1"),
        Record({"positive": [USER, REPLY], "negative": [USER, {**REPLY, "content": "Go away."}]}, "f:2"),
        Record({"positive": [{"role": "system", "content": "Love."}, USER], "negative": [USER]}, "f:3"),
    ]
    prompt = (Message("user", "Hi."),)
    pairs = text_pairs(records)
    assert pairs == [
        Pair(Passage("I love it"), Passage("I hate it")),
        Pair(Passage(prompt, (Message("assistant", "Hello!"),)), Passage(prompt, (Message("assistant", "Go away."),))),
        Pair(Passage((Message("system", "Love."), *prompt)), Passage(prompt)),
    ]
    assert [pair.where for pair in pairs] == ["f:1", "f:2", "f:3"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"positive": "a"}, "no field `negative` .fields: `positive`"),
        ({"negative": "a"}, "no field `positive`"),
        ({"positive": "a", "negative": None}, "`negative` is a JSON null"),
        ({"positive": "", "negative": "a"}, "`positive` is empty"),
        ({"positive": [], "negative": [USER]}, "`positive` is an empty list"),
        ({"positive": "a", "negative": [USER]}, "a chat on one side and a plain text on the other"),
        ({"positive": [USER, REPLY], "negative": [USER]}, "only one side ends with the assistant's turn"),
        ({"positive": [REPLY], "negative": [USER, REPLY]}, "`positive` begins with the assistant"),
        ({"positive": [{"role": "boss", "content": "x"}], "negative": [USER]}, "`positive`, message 1: `role` is"),
        ({"prompt": "q", "positive": "a", "negative": "b"}, "`prompt` beside `positive` and `negative`"),
        ("text", "a JSON string instead of an object"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(value: Any, named: str) -> None:
    with pytest.raises(DataError, match=named) as caught:
        text_pairs([Record({"positive": "x", "negative": "y"}, "f:1"), Record(value, "f:2")])
    assert caught.value.message.startswith("f:2: ")
    assert caught.value.hint
