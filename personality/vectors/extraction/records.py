"""JSON files of any layout as records, each with the line on which it begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from personality.manifests.errors import DataError
from personality.vectors.training.examples import json_kind, read_data


class Record(NamedTuple):
    """One value of a JSON file, and "file:line"."""

    value: Any
    where: str


def read_records(path: Path) -> list[Record]:
    """Read a file of JSON values: one a line, one after another, or the elements of one array.

    Args:
        path: the file, UTF-8.

    Returns:
        The values in the file's order, at least one.

    Raises:
        NotFoundError: there is no such file.
        DataError: it is not JSON, or holds nothing; with the line.
    """
    text = read_data(path).removeprefix("\ufeff")
    records = list(_values(text, path))
    if len(records) == 1 and isinstance(records[0].value, list):
        records = list(_elements(text, path))
    if not records:
        raise DataError(f"{path} holds no pairs", "write one JSON object a line")
    return records


def _values(text: str, path: Path) -> Iterator[Record]:
    """JSON values one after another; in JSONL, where each line is one, errors keep to their line."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    if _is_json(first):
        # Not splitlines(): JSON strings may hold U+2028 and the like, which are no line ends in JSONL.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                value, end = _decode(line, _skip(line, 0), path, number - 1)
                if line[end:].strip():
                    raise DataError(f"{path}:{number}: more than one JSON value", "write one object a line")
                yield Record(value, f"{path}:{number}")
        return
    at = _skip(text, 0)
    while at < len(text):
        value, end = _decode(text, at, path, 0)
        yield Record(value, f"{path}:{_line(text, at)}")
        at = _skip(text, end)


def _elements(text: str, path: Path) -> Iterator[Record]:
    """Elements of a JSON array that was found to be sound."""
    at = _skip(text, text.index("[") + 1)
    while text[at] != "]":
        value, end = _decode(text, at, path, 0)
        yield Record(value, f"{path}:{_line(text, at)}")
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _decode(text: str, at: int, path: Path, lines_before: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{lines_before + error.lineno}: not JSON ({error.msg} at column {error.colno})",
            "give one JSON object a line, or one JSON array of objects",
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}:{lines_before + _line(text, at)}: JSON nested too deeply", "flatten it") from error


def _skip(text: str, at: int) -> int:
    """The next index that is not JSON's white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def fields(record: Record, *names: str, form: str) -> list[Any]:
    """Values of fields that an object must have.

    Args:
        record: from `read_records`.
        names: of the fields.
        form: how a record looks, for the hint.

    Raises:
        DataError: it is no object, or lacks one of them.
    """
    if not isinstance(record.value, dict):
        raise DataError(f"{record.where}: a JSON {json_kind(record.value)} instead of an object", form)
    for name in names:
        if name not in record.value:
            present = ", ".join(f"`{key}`" for key in record.value) or "none"
            raise DataError(f"{record.where}: no field `{name}` (fields: {present})", form)
    return [record.value[name] for name in names]
