"""A transcript's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from personality.manifests.errors import DataError, NotFoundError
from personality.reading.transcript import read_messages
from personality.vectors.training.examples import Message


def test_a_message_a_line(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"role": "user", "content": "a\u2028b"}\n\n{"role": "assistant", "content": ""}\n')
    assert read_messages(path) == (Message("user", "a\u2028b"), Message("assistant", ""))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "chat.jsonl:1: not JSON"),
        ("[1]", "chat.jsonl:1: no message"),
        ('\n{"role": "me", "content": ""}', "chat.jsonl:2, message 1: `role` is 'me'"),
        ("\n", "has no messages"),
    ],
)
def test_what_is_no_message_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=says.replace("[", r"\[")):
        read_messages(path)
    with pytest.raises(NotFoundError):
        read_messages(tmp_path / "none.jsonl")
