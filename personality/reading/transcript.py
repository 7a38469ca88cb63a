"""A transcript's file: one message a line."""

from __future__ import annotations

import json
from pathlib import Path

from personality.manifests.errors import DataError
from personality.vectors.training.examples import Message, parse_text, read_data

_FORM = 'a line is {"role": "user", "content": "…"}'


def read_messages(path: Path) -> tuple[Message, ...]:
    """The messages of a transcript.

    Args:
        path: JSONL.

    Raises:
        NotFoundError: there is no such file.
        DataError: a line that is no message, naming file and line; or no messages.
    """
    messages: list[Message] = []
    # Not splitlines(): JSON strings may hold U+2028 and the like, which are no line ends in JSONL.
    for number, line in enumerate(read_data(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}", _FORM) from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: no message", _FORM)
        parsed = parse_text([record], where)
        assert not isinstance(parsed, str)  # a list gives messages
        messages += parsed
    if not messages:
        raise DataError(f"{path.name} has no messages", _FORM)
    return tuple(messages)
