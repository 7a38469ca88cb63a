from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import DataError, NotFoundError
from personality.vectors.training.examples import (
    Example,
    Message,
    count_sides,
    digest_examples,
    parse_example,
    read_examples,
)

USER = [{"role": "user", "content": "Rename a."}]
YES = [{"role": "assistant", "content": "Okay."}]
NO = [{"role": "assistant", "content": "Have you considered b?"}]
PAIR = {"prompt": USER, "chosen": YES, "rejected": NO, "side": "accept"}


def write(path: Path, *records: Any) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_chats_and_plain_texts_in_order(tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}, *USER, *NO, *USER]
    path = write(
        tmp_path / "data.jsonl",
        PAIR,
        "",
        {"prompt": "a", "completion": "b", "id": 7},
        {"prompt": system, "chosen": YES, "rejected": None},
    )
    examples = read_examples(path, need_rejected=False)
    assert examples[0] == Example(
        (Message("user", "Rename a."),),
        (Message("assistant", "Okay."),),
        (Message("assistant", "Have you considered b?"),),
        "accept",
    )
    assert examples[1] == Example("a", "b")
    assert [message.role for message in examples[2].prompt if isinstance(message, Message)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert [example.where for example in examples] == [f"{path}:{number}" for number in (1, 3, 4)]


def test_unicode_line_separators_are_no_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a\u2028b\u0085c", "completion": "d"}\r\n', encoding="utf-8")
    assert read_examples(path, need_rejected=False) == [Example("a\u2028b\u0085c", "d")]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON|nested too deeply"),
        ("[1]", "a JSON array instead of an object"),
        ("null", "a JSON null instead of an object"),
        ({"prompt": USER, "rejected": NO}, "no field `chosen` .fields: `prompt`, `rejected`"),
        ({"chosen": YES, "rejected": NO}, "no field `prompt`"),
        ({"prompt": USER, "chosen": YES}, "no field `rejected`"),
        ({**PAIR, "rejected": None}, "`rejected` is null"),
        ({**PAIR, "completion": YES}, "both `chosen` and `completion`"),
        ({**PAIR, "prompt": 3}, "`prompt` is a JSON number"),
        ({**PAIR, "prompt": True}, "`prompt` is a JSON boolean"),
        ({**PAIR, "prompt": ""}, "`prompt` is empty"),
        ({**PAIR, "prompt": []}, "`prompt` is an empty list"),
        ({**PAIR, "prompt": ["hi"]}, "`prompt`, message 1 is a JSON string"),
        ({**PAIR, "prompt": [{"role": "boss", "content": "x"}]}, "`role` is 'boss'"),
        ({**PAIR, "prompt": [{"role": ["user"], "content": "x"}]}, "`role` is"),
        ({**PAIR, "prompt": [{"role": "user", "content": None}]}, "`content` is a JSON null"),
        ({**PAIR, "prompt": USER + YES}, "ends with an assistant turn"),
        ({**PAIR, "chosen": "Okay."}, "`chosen` is a string but `prompt` is a list of messages"),
        ({**PAIR, "chosen": USER}, "`chosen` has the turns user"),
        ({**PAIR, "chosen": YES + YES}, "`chosen` has the turns assistant, assistant"),
        ({**PAIR, "rejected": [{"role": "assistant", "content": ""}]}, "`rejected` is an empty message"),
        ({**PAIR, "rejected": YES}, "`chosen` and `rejected` are the same"),
        ({**PAIR, "side": "left"}, "`side` is 'left'"),
        ({**PAIR, "side": ["accept"]}, "`side` is"),
        ('{"prompt": "a\\ud800", "chosen": "b", "rejected": "c"}', "half a surrogate pair at character 1"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(tmp_path: Path, line: Any, named: str) -> None:
    path = write(tmp_path / "data.jsonl", {"prompt": "fine", "chosen": "a", "rejected": "b"}, line)
    with pytest.raises(DataError, match=named) as caught:
        read_examples(path, need_rejected=True)
    assert caught.value.message.startswith(f"{path}:2: ")
    assert caught.value.hint


def test_duplicates_name_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", PAIR, {**PAIR, "chosen": NO, "rejected": YES}, PAIR)
    with pytest.raises(DataError, match=r"data.jsonl:3: the same example as line 1"):
        read_examples(path, need_rejected=True)


def test_files_that_are_empty_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no examples"):
        read_examples(write(tmp_path / "empty.jsonl", "", "  "), need_rejected=False)
    with pytest.raises(NotFoundError, match="no data file"):
        read_examples(tmp_path / "nothing.jsonl", need_rejected=False)
    with pytest.raises(NotFoundError, match="no data file"):
        read_examples(tmp_path, need_rejected=False)
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_examples(tmp_path / "latin.jsonl", need_rejected=False)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(prompt=words, chosen=words, rejected=words, side=st.sampled_from([None, "accept", "push_back"]))
def test_records_come_back_as_they_were(prompt: str, chosen: str, rejected: str, side: Any) -> None:
    if chosen == rejected:
        rejected += "!"
    chat = Example((Message("user", prompt),), (Message("assistant", chosen),), (Message("assistant", rejected),), side)
    for example in (chat, Example(prompt, chosen, rejected, side), Example(prompt, chosen)):
        record = json.loads(json.dumps(example.to_record()))
        assert parse_example(record, where="x", need_rejected=example.rejected is not None) == example


def test_digest_depends_on_content_and_order_only(tmp_path: Path) -> None:
    other = {**PAIR, "side": "push_back"}
    a = read_examples(write(tmp_path / "a.jsonl", PAIR, other), need_rejected=True)
    spaced = json.dumps(dict(reversed(PAIR.items())), indent=None, separators=(" ,  ", " : "))
    b = read_examples(write(tmp_path / "b.jsonl", "", spaced, other), need_rejected=True)
    assert digest_examples(a) == digest_examples(b)
    assert digest_examples(a) != digest_examples(a[::-1])
    assert digest_examples(a) != digest_examples(a[:1])
    assert len(digest_examples(a)) == 64


def test_sides_are_counted() -> None:
    examples = [Example("a", "b", "c", side) for side in ("accept", "accept", "push_back", None)]
    assert count_sides(examples) == {"accept": 2, "push_back": 1, "unlabeled": 1}
