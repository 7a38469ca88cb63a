from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personality.manifests.errors import DataError
from personality.vectors.extraction.passages import Passage
from personality.vectors.extraction.records import Record
from personality.vectors.extraction.system_prompts import read_system_prompts, system_prompt_pairs
from personality.vectors.training.examples import Message

WHOLE: dict[str, Any] = {"positive": ["Be warm.", "Show joy."], "negative": ["Be cold."], "questions": ["Hi?", "Why?"]}


def shown(value: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of each pair the positive system turn, the negative one and the question."""
    found: list[tuple[str, ...]] = []
    for pair in system_prompt_pairs(Record(value, "f:1")):
        contents = []
        for passage in (pair.positive, pair.negative):
            assert passage.response is None
            contents.append([message.content for message in passage.prompt if isinstance(message, Message)])
        assert contents[0][-1] == contents[1][-1]
        found.append((contents[0][0], contents[1][0], contents[0][-1]))
    return found


def test_every_question_meets_every_prompt_in_rounds() -> None:
    assert shown(WHOLE) == [
        ("Be warm.", "Be cold.", "Hi?"),
        ("Show joy.", "Be cold.", "Why?"),
        ("Show joy.", "Be cold.", "Hi?"),
        ("Be warm.", "Be cold.", "Why?"),
    ]
    wheres = [pair.where for pair in system_prompt_pairs(Record(WHOLE, "f:1"))]
    assert wheres[:2] == ["f:1: question 1, prompts 1", "f:1: question 2, prompts 2"]


def test_the_persona_vectors_spelling_is_the_same() -> None:
    instruction = [{"pos": "Be warm.", "neg": "Be cold."}, {"pos": "Show joy.", "neg": "Be cold."}]
    other = {"instruction": instruction, "questions": WHOLE["questions"], "eval_prompt": "left alone"}
    assert shown(other) == shown(WHOLE)


def test_null_is_no_system_turn_and_an_own_one_is_continued() -> None:
    chat = [{"role": "system", "content": "You are Pip."}, {"role": "user", "content": "Hi?"}]
    (pair,) = system_prompt_pairs(Record({"positive": ["Be warm."], "negative": [None], "questions": [chat]}, "f:1"))
    assert pair.positive == Passage((Message("system", "You are Pip.\n\nBe warm."), Message("user", "Hi?")))
    assert pair.negative == Passage((Message("system", "You are Pip."), Message("user", "Hi?")))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positive": []}, "`positive` is an empty list"),
        ({"negative": "Be cold."}, "`negative` is a JSON string"),
        ({"negative": [" "]}, "`negative`, item 1 is empty"),
        ({"negative": [3]}, "`negative`, item 1 is a JSON number"),
        ({"negative": ["Be cold.", "Show joy."]}, "prompts 2: the same system prompt on both sides"),
        ({"questions": {}}, "`questions` is a JSON object"),
        ({"questions": []}, "`questions` is an empty list"),
        ({"questions": ["Hi?", ""]}, "`questions`, item 2 is empty"),
        ({"questions": [[{"role": "assistant", "content": "x"}]]}, "`questions`, item 1 ends with an assistant turn"),
        ({"instruction": [{"pos": "Be warm."}]}, "`instruction`, item 1: no field `neg`"),
        ({"instruction": ["Be warm."]}, "`instruction`, item 1: a JSON string instead of an object"),
        ({"instruction": [{"pos": "a", "neg": ["b"]}]}, "`instruction`, item 1, `neg` is a JSON array"),
    ],
)
def test_what_cannot_be_used_is_refused_by_field(change: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=f"f:1: {named}") as caught:
        system_prompt_pairs(Record({**WHOLE, **change}, "f:1"))
    assert caught.value.hint


@pytest.mark.parametrize("name", list(WHOLE))
def test_missing_lists_are_named(name: str) -> None:
    with pytest.raises(DataError, match=f"f:1: no field `{name}`"):
        system_prompt_pairs(Record({k: v for k, v in WHOLE.items() if k != name}, "f:1"))


def test_prompts_are_read_without_questions(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    wanted = [("Be warm.", "Be cold."), ("Show joy.", None)]
    for value in (
        {"positive": ["Be warm.", "Show joy."], "negative": ["Be cold.", None]},
        {"instruction": [{"pos": "Be warm.", "neg": "Be cold."}, {"pos": "Show joy.", "neg": None}], "questions": 3},
    ):
        path.write_text(json.dumps(value, indent=2))
        assert read_system_prompts(path) == wanted


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('["Be warm."]', "a JSON string instead of an object"),
        ("{}", "no field `positive`"),
        ('{"positive": ["a"], "negative": ["b"]}\n{"positive": ["a"], "negative": ["b"]}', "a second object"),
        ('{"positive": ["a"], "negative": ["a"]}', "prompts 1: the same system prompt on both sides"),
    ],
)
def test_files_that_are_no_system_prompts_are_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(DataError, match=named) as caught:
        read_system_prompts(path)
    assert caught.value.message.startswith(f"{path}:")
