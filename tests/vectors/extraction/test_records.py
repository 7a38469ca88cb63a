from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import DataError, NotFoundError
from personality.vectors.extraction.records import Record, fields, read_records

ROWS: list[dict[str, Any]] = [{"a": 1, "b": "x\u2028y"}, {"a": "]}"}, {"c": [1, {"d": ","}]}]


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.json"
    path.write_text(text, encoding="utf-8")
    return path


def lines(path: Path) -> list[int]:
    return [int(record.where.removeprefix(f"{path}:")) for record in read_records(path)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n", [1, 2, 3]),
        ("\ufeff\n" + "\n\n".join(json.dumps(row) for row in ROWS), [2, 4, 6]),
        (json.dumps(ROWS), [1, 1, 1]),
        (json.dumps(ROWS, indent=1), [2, 6, 9]),
        ("\n" + "\n".join(json.dumps(row, indent=2) for row in ROWS), [2, 6, 9]),
    ],
    ids=["jsonl", "blank lines", "array", "indented array", "indented objects"],
)
def test_each_layout_gives_the_same_values_with_their_lines(tmp_path: Path, text: str, expected: list[int]) -> None:
    path = write(tmp_path, text)
    assert [record.value for record in read_records(path)] == ROWS
    assert lines(path) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), json_values), min_size=1, max_size=4), st.sampled_from([0, 3]))
def test_arrays_and_lines_hold_the_same(tmp_path_factory: pytest.TempPathFactory, rows: Any, indent: int) -> None:
    folder = tmp_path_factory.mktemp("records")
    array = [record.value for record in read_records(write(folder, json.dumps(rows, indent=indent or None)))]
    jsonl = [record.value for record in read_records(write(folder, "\n".join(map(json.dumps, rows))))]
    assert array == jsonl == rows


@pytest.mark.parametrize(
    ("text", "line", "named"),
    [
        ('{"a": 1}\n{"a": \n{"a": 3}', 2, "not JSON"),
        ('{"a": 1}\n{"a": 2} {"a": 3}', 2, "more than one JSON value"),
        ('[\n {"a": 1},\n {"a" 2}\n]', 3, "not JSON"),
        ("[" * 100_000, 1, "not JSON|nested too deeply"),
        ("hello", 1, "not JSON"),
    ],
)
def test_broken_json_is_named_with_its_line(tmp_path: Path, text: str, line: int, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=named) as caught:
        read_records(path)
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", " \n\n", "[]", "[ \n ]"])
def test_empty_files_hold_no_pairs(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="holds no pairs"):
        read_records(write(tmp_path, text))


def test_a_file_must_be_there_and_be_text(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no data file"):
        read_records(tmp_path / "nothing.json")
    (tmp_path / "latin.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_records(tmp_path / "latin.json")


def test_fields_are_there_or_named() -> None:
    assert fields(Record({"a": 1, "b": None}, "x:1"), "b", "a", form="…") == [None, 1]
    with pytest.raises(DataError, match=r"x:1: no field `b` \(fields: `a`\)"):
        fields(Record({"a": 1}, "x:1"), "a", "b", form="…")
    with pytest.raises(DataError, match="x:1: a JSON array instead of an object"):
        fields(Record([], "x:1"), "a", form="…")
