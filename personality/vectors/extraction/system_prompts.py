"""System prompts that ask for a behavior and for its opposite, over a set of questions (arXiv 2507.21509)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from personality.manifests.errors import DataError
from personality.vectors.extraction.contexts import add_system
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.extraction.records import Record, fields, read_records
from personality.vectors.training.examples import Message, Text, json_kind, parse_text

SYSTEM_PROMPTS_FORM: Final = (
    'the file is one object {"positive": [system prompts], "negative": [system prompts], "questions": [...]}, '
    'or {"instruction": [{"pos": …, "neg": …}], "questions": [...]}'
)


def read_system_prompts(path: Path) -> list[tuple[str | None, str | None]]:
    """System prompts for a behavior and for its opposite, to put before prompts from elsewhere.

    Args:
        path: a file of system prompts; `questions` may be missing and are not read.

    Returns:
        The prompt for and the one against, in pairs as `system_prompt_pairs` makes them; None is none.

    Raises:
        NotFoundError: there is no such file.
        DataError: something in it cannot be used.
    """
    return _prompts(only_record(read_records(path)))


def only_record(records: Sequence[Record]) -> Record:
    """The one object of a file of system prompts.

    Raises:
        DataError: there are more.
    """
    if len(records) > 1:
        raise DataError(f"{records[1].where}: a second object in a file of system prompts", SYSTEM_PROMPTS_FORM)
    return records[0]


def system_prompt_pairs(record: Record) -> list[Pair]:
    """Pairs of one question under a system prompt for the behavior and under one for its opposite.

    Every question meets every prompt: the i-th of `positive` goes with the i-th of `negative`, the shorter list
    beginning anew. The pairs come in rounds over all questions, so that their beginning already has every
    question, and prompts of all kinds.

    Args:
        record: the file's one object. A question is a string (a user's turn) or a list of messages; `null` in
            place of a system prompt is none.

    Raises:
        DataError: a field is missing, malformed or empty, or the two prompts of a pair are the same.
    """
    questions = [
        _question(value, f"{record.where}: `questions`, item {number}")
        for number, value in enumerate(_filled(record, "questions"), start=1)
    ]
    prompts = _prompts(record)
    pairs = []
    for step in range(len(prompts)):
        for number, question in enumerate(questions):
            chosen = (number + step) % len(prompts)
            positive, negative = (Passage(add_system(question, prompt)) for prompt in prompts[chosen])
            where = f"{record.where}: question {number + 1}, prompts {chosen + 1}"
            pairs.append(Pair(positive, negative, where=where))
    return pairs


def _prompts(record: Record) -> list[tuple[str | None, str | None]]:
    where = record.where
    found = []
    fields(record, form=SYSTEM_PROMPTS_FORM)
    if "instruction" in record.value:
        for number, value in enumerate(_filled(record, "instruction"), start=1):
            what = f"{where}: `instruction`, item {number}"
            texts = fields(Record(value, what), "pos", "neg", form=SYSTEM_PROMPTS_FORM)
            positive, negative = (
                _system(text, f"{what}, `{name}`") for text, name in zip(texts, ("pos", "neg"), strict=True)
            )
            found.append((what, positive, negative))
    else:
        sides = {
            name: [
                _system(value, f"{where}: `{name}`, item {number}")
                for number, value in enumerate(_filled(record, name), start=1)
            ]
            for name in ("positive", "negative")
        }
        count = max(len(side) for side in sides.values())
        for index in range(count):
            positive, negative = (side[index % len(side)] for side in sides.values())
            found.append((f"{where}: prompts {index + 1}", positive, negative))
    for what, positive, negative in found:
        if positive == negative:
            raise DataError(f"{what}: the same system prompt on both sides", "a pair must differ; remove it")
    return [(positive, negative) for _, positive, negative in found]


def _filled(record: Record, name: str) -> list[Any]:
    (value,) = fields(record, name, form=SYSTEM_PROMPTS_FORM)
    if not isinstance(value, list):
        raise DataError(f"{record.where}: `{name}` is a JSON {json_kind(value)}", SYSTEM_PROMPTS_FORM)
    if not value:
        raise DataError(f"{record.where}: `{name}` is an empty list", "give it at least one item")
    return value


def _question(value: Any, what: str) -> Text:
    text = parse_text(value, what)
    if isinstance(text, str):
        return (Message("user", text),)
    if text[-1].role == "assistant":
        raise DataError(f"{what} ends with an assistant turn", "end it with the user's")
    return text


def _system(value: Any, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{what} is a JSON {json_kind(value)}", "a system prompt is a string, or null for none")
    if not value.strip():
        raise DataError(f"{what} is empty", "write the system prompt, or null for none")
    parse_text(value, what)
    return value
