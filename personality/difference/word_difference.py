"""Which words of two texts differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
_JOINT = re.compile(r"\s+")


@dataclass(frozen=True)
class WordRun:
    """Some words in a row of one text.

    Attributes:
        text: with the white space in and between them, so that the passages of a text joined are the text.
        own: whether the other text lacks them at this place.
    """

    text: str
    own: bool


def word_difference(first: str, second: str) -> tuple[list[WordRun], list[WordRun]]:
    """Two texts split where they differ, by words and marks (Ratcliff and Obershelp's matching, as difflib has it).

    White space between two differing words counts as differing, so that a changed phrase is one passage.
    """
    a, b = _WORD.findall(first), _WORD.findall(second)
    left: list[WordRun] = []
    right: list[WordRun] = []
    # Frequent words of a long text are words too: no heuristic may pass over them.
    for tag, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        _add(left, "".join(a[i:j]), tag != "equal")
        _add(right, "".join(b[k:m]), tag != "equal")
    return _joined(left), _joined(right)


def _add(passages: list[WordRun], text: str, own: bool) -> None:
    if text:
        passages.append(WordRun(text, own))


def _joined(passages: list[WordRun]) -> list[WordRun]:
    """Passages of which no two neighbors are of a kind, with lone white space taken into what differs around it."""
    found: list[WordRun] = []
    for index, item in enumerate(passages):
        between = 0 < index < len(passages) - 1 and passages[index - 1].own and passages[index + 1].own
        own = item.own or (between and bool(_JOINT.fullmatch(item.text)))
        if found and found[-1].own == own:
            found[-1] = WordRun(found[-1].text + item.text, own)
        else:
            found.append(WordRun(item.text, own))
    return found
