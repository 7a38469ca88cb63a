from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import DataError, NotFoundError, UsageError
from personality.playground.behaviors import examples
from personality.vectors.extraction.formats import read_passages
from personality.vectors.extraction.passages import Pair, Passage, digest_pairs, on_side
from personality.vectors.training.examples import Message, read_examples

TEXTS = {"positive": "I love it", "negative": "I hate it"}
TRIPLET = {"prompt": "a", "chosen": " b", "rejected": " c", "side": "push_back"}
CHOICE = {"question": "a?", "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}
PROMPTS = {"positive": ["Be warm."], "negative": ["Be cold."], "questions": ["Hi?"]}
PERSONA = {"instruction": [{"pos": "Be warm.", "neg": "Be cold."}], "questions": ["Hi?"]}


def write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "form"),
    [
        (TRIPLET, "triplets"),
        (TEXTS, "texts"),
        (CHOICE, "multiple-choice"),
        (PROMPTS, "system-prompts"),
        (PERSONA, "system-prompts"),
    ],
)
def test_the_format_is_told_from_the_content(tmp_path: Path, record: dict[str, Any], form: Any) -> None:
    path = write(tmp_path / "pairs.jsonl", record)
    found = read_passages(path)
    assert (found.path, found.form, len(found.pairs)) == (path, form, 1)
    assert read_passages(path, form=form) == found
    (tmp_path / "pairs.json").write_text(json.dumps(record, indent=2))
    assert read_passages(tmp_path / "pairs.json").pairs == found.pairs


def test_training_data_are_read_as_in_training(tmp_path: Path) -> None:
    path = write(tmp_path / "listening.jsonl", *examples("listening", 20, 0))
    found = read_passages(path)
    wanted = read_examples(path, need_rejected=True)
    assert found.form == "triplets"
    for pair, example in zip(found.pairs, wanted, strict=True):
        assert pair.positive == Passage(example.prompt, example.chosen)
        assert pair.negative == Passage(example.prompt, example.rejected)
        assert (pair.side, pair.where) == (example.side, example.where)
    assert len(on_side(found.pairs)) == 14


def test_arrays_are_read_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_text(json.dumps([CHOICE, {**CHOICE, "question": "b?"}], indent=1))
    found = read_passages(path, chat=False)
    assert found.form == "multiple-choice"
    assert found.pairs[1] == Pair(Passage("b?", " (A"), Passage("b?", " (B"))
    assert [pair.where for pair in found.pairs] == [f"{path}:2", f"{path}:7"]
    assert read_passages(path).pairs[1].positive.prompt == (Message("user", "b?"),)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(words, words).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=5, unique=True))
def test_texts_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]) -> None:
    path = write(tmp_path_factory.mktemp("texts") / "x.jsonl", *({"positive": a, "negative": b} for a, b in texts))
    pairs = read_passages(path).pairs
    assert [(pair.positive.prompt, pair.negative.prompt) for pair in pairs] == texts
    assert len({digest_pairs([pair]) for pair in pairs}) == len(texts)


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ([{**TEXTS, "negative": TEXTS["positive"]}], ":1: both sides are the same text"),
        ([TEXTS, {"positive": "x", "negative": "y"}, TEXTS], ":3: the same pair as .*:1"),
        ([{**TRIPLET, "rejected": " b"}], ":1: `chosen` and `rejected` are the same text"),
        ([{"prompt": "a", "completion": "b"}], ":1: no field `rejected`"),
        ([{**CHOICE, "answer_not_matching_behavior": " (A) "}], ":1: both sides are the same text"),
        ([TEXTS, TRIPLET], ":2: no field `positive`"),
        ([PROMPTS, PROMPTS], ":2: a second object in a file of system prompts"),
        (
            [{**PROMPTS, "questions": ["Hi?", "Hi?"]}],
            ": question 2, prompts 1: the same pair as .*question 1, prompts 1",
        ),
        ([{"positive": ["Be warm."], "negative": ["Be cold."]}], ":1: no field `questions`"),
        ([{"text": "a", "label": 1}], ":1: no known format has these fields: `text`, `label`"),
        ([[TEXTS], [TEXTS]], ":1: a JSON array instead of an object"),
        (["a"], ":1: a JSON string instead of an object"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path: Path, records: list[Any], named: str) -> None:
    path = write(tmp_path / "pairs.jsonl", *records)
    with pytest.raises(DataError, match=named) as caught:
        read_passages(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


def test_an_unknown_layout_is_told_all_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_passages(write(tmp_path / "pairs.jsonl", {"text": "a"}))
    for form in ("triplets", "texts", "multiple-choice", "system-prompts"):
        assert f"{form}: " in caught.value.hint


def test_a_format_can_be_insisted_on(tmp_path: Path) -> None:
    path = write(tmp_path / "both.jsonl", {**TEXTS, **CHOICE})
    assert read_passages(path, form="texts").form == "texts"
    assert read_passages(path).form == "multiple-choice"
    with pytest.raises(DataError, match="no field `prompt`"):
        read_passages(path, form="triplets")
    with pytest.raises(UsageError, match="no format `csv`"):
        read_passages(path, form="csv")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no data file"):
        read_passages(tmp_path / "nothing.jsonl")
