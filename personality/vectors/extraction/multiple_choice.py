"""Questions with two answers to choose from, as contrastive activation addition uses them (arXiv 2312.06681)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from personality.manifests.errors import DataError
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.extraction.records import Record, fields
from personality.vectors.training.examples import Message, Text, json_kind, parse_text

MULTIPLE_CHOICE_FORM: Final = (
    'an element is {"question": …, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}'
)
_LETTER: Final = re.compile(r"(\s*\(?([A-Za-z0-9]))\s*[).:]*\s*")
_ENOUGH_TO_VARY: Final = 8  # by chance all letters are alike in 1 of 128 files of this size


def multiple_choice_pairs(records: Sequence[Record], *, chat: bool) -> list[Pair]:
    """Pairs of one question with either answer.

    What closes an answer's letter, as the parenthesis in "(A)", is left out, so that the letter's own token is
    the reply's last: the place at which the method reads.

    Args:
        records: from `read_records`.
        chat: make a string a user's turn and its answers the assistant's; else all stays plain text.

    Raises:
        DataError: a field is missing or malformed, both answers are the same, or one and the same letter
            matches in every question.
    """
    pairs = [_pair(record, chat=chat) for record in records]
    letters = {_letter(record.value["answer_matching_behavior"]) for record in records}
    if len(pairs) >= _ENOUGH_TO_VARY and len(letters) == 1 and None not in letters:
        raise DataError(
            f"{records[0].where}: the answer that matches is ({letters.pop()}) in all {len(pairs)} questions, "
            "so the direction would be the letter's",
            "let each letter match in half of the questions: swap the choices",
        )
    return pairs


def _pair(record: Record, *, chat: bool) -> Pair:
    where = record.where
    names = ("answer_matching_behavior", "answer_not_matching_behavior")
    question, *answers = fields(record, "question", *names, form=MULTIPLE_CHOICE_FORM)
    prompt: Text = parse_text(question, f"{where}: `question`")
    if chat and isinstance(prompt, str):
        prompt = (Message("user", prompt),)
    if not isinstance(prompt, str) and prompt[-1].role == "assistant":
        raise DataError(f"{where}: `question` ends with an assistant turn", "the answers have fields of their own")
    passages = []
    for name, answer in zip(names, answers, strict=True):
        if not isinstance(answer, str):
            raise DataError(f"{where}: `{name}` is a JSON {json_kind(answer)}", 'an answer is a string such as "(A)"')
        if not answer.strip():
            raise DataError(f"{where}: `{name}` is empty", 'an answer is a string such as "(A)"')
        letter = _LETTER.fullmatch(answer)
        text = letter.group(1) if letter else answer
        passages.append(Passage(prompt, text if isinstance(prompt, str) else (Message("assistant", text.strip()),)))
    return Pair(passages[0], passages[1], where=where)


def _letter(answer: str) -> str | None:
    found = _LETTER.fullmatch(answer)
    return found.group(2).upper() if found else None
