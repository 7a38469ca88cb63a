"""Files of pairs, whichever of the field's formats they have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.multiple_choice import MULTIPLE_CHOICE_FORM, multiple_choice_pairs
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.extraction.records import Record, read_records
from personality.vectors.extraction.system_prompts import SYSTEM_PROMPTS_FORM, only_record, system_prompt_pairs
from personality.vectors.extraction.texts import TEXTS_FORM, text_pairs
from personality.vectors.training.examples import json_kind, parse_example

Format = Literal["triplets", "texts", "multiple-choice", "system-prompts"]

_MARKS: Final[dict[Format, tuple[str, ...]]] = {
    "system-prompts": ("questions", "instruction"),
    "multiple-choice": ("question", "answer_matching_behavior", "answer_not_matching_behavior"),
    "texts": ("positive", "negative"),
    "triplets": ("prompt", "chosen", "rejected"),
}
"""Fields of which any one tells a format; the first format whose field is there is taken."""

_FORMS: Final = "; ".join(
    (
        'triplets: a line is {"prompt": …, "chosen": …, "rejected": …}',
        f"texts: {TEXTS_FORM}",
        f"multiple-choice: {MULTIPLE_CHOICE_FORM}",
        f"system-prompts: {SYSTEM_PROMPTS_FORM}",
    )
)


@dataclass(frozen=True)
class PairFile:
    """What was read.

    Attributes:
        path: the file.
        form: its format.
        pairs: at least one; no two the same.
    """

    path: Path
    form: Format
    pairs: tuple[Pair, ...]


def read_passages(path: Path, *, form: Format | None = None, chat: bool = True) -> PairFile:
    """Read pairs from a file.

    - `triplets`, as in training: `prompt`, `chosen`, `rejected`, optionally `side`;
    - `texts`: `positive` and `negative`, strings or chats;
    - `multiple-choice`: `question`, `answer_matching_behavior`, `answer_not_matching_behavior`;
    - `system-prompts`: one object with `positive` and `negative` system prompts (or `instruction`, a list of
      `pos` and `neg`) and `questions`.

    Args:
        path: JSON objects, one a line or in one array.
        form: the format; by default it is told from the fields of the first object.
        chat: in multiple choice, make questions the user's turns; False for a base without a chat template.

    Returns:
        The pairs and the format.

    Raises:
        NotFoundError: there is no such file.
        UsageError: no such format.
        DataError: something in the file cannot be used; the message begins with file and line.
    """
    if form is not None and form not in get_args(Format):
        raise UsageError(f"no format `{form}`", f"formats are {', '.join(f'`{name}`' for name in get_args(Format))}")
    records = read_records(path)
    form = form or _detect(records[0])
    if form == "triplets":
        pairs = [_triplet(record) for record in records]
    elif form == "texts":
        pairs = text_pairs(records)
    elif form == "multiple-choice":
        pairs = multiple_choice_pairs(records, chat=chat)
    else:
        pairs = system_prompt_pairs(only_record(records))
    _check_distinct(pairs)
    return PairFile(path, form, tuple(pairs))


def _detect(record: Record) -> Format:
    value: Any = record.value
    if not isinstance(value, dict):
        raise DataError(f"{record.where}: a JSON {json_kind(value)} instead of an object", _FORMS)
    if any(isinstance(text, str) for name in ("positive", "negative") for text in _items(value.get(name))):
        return "system-prompts"  # a list of strings is no chat
    for form, marks in _MARKS.items():
        if any(mark in value for mark in marks):
            return form
    present = ", ".join(f"`{key}`" for key in value) or "none"
    raise DataError(f"{record.where}: no known format has these fields: {present}", _FORMS)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _triplet(record: Record) -> Pair:
    example = parse_example(record.value, where=record.where, need_rejected=True)
    return Pair(
        Passage(example.prompt, example.chosen),
        Passage(example.prompt, example.rejected),
        side=example.side,
        where=record.where,
    )


def _check_distinct(pairs: list[Pair]) -> None:
    seen: dict[tuple[Passage, Passage], Pair] = {}
    for pair in pairs:
        if pair.positive == pair.negative:
            raise DataError(f"{pair.where}: both sides are the same text", "a pair must differ; remove it")
        sides = (pair.positive, pair.negative)
        if sides in seen:
            raise DataError(
                f"{pair.where}: the same pair as {seen[sides].where}", "remove one of the two; every pair counts once"
            )
        seen[sides] = pair
