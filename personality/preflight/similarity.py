"""Texts that are nearly the same: Jaccard similarity of their word shingles, found without comparing all pairs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

from personality.vectors.training.examples import Text

NEAR = 0.75
"""Jaccard similarity from which two texts count as nearly the same: one word changed in the middle of 25 gives 0.77."""

_SHINGLE = 3
_PUNCTUATION = ".,!?;:…'\"()\u2010-\u201f«»\u3001-\u301f\uff01\uff0c\uff1a\uff1b\uff1f"
# Scripts that do not put spaces between words are taken character by character. Signs are words: + is not -.
_WORDS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    rf"|\w+|[^\w\s{_PUNCTUATION}]"
)

Shingles = frozenset[tuple[str, ...]]
Item = TypeVar("Item", bound=Hashable)


def words(text: str) -> list[str]:
    """A text's words and signs, without case and punctuation."""
    return _WORDS.findall(text.casefold())


def said(text: Text) -> str:
    """What is said in a prompt or answer: all turns but the system's, which many prompts share."""
    return text if isinstance(text, str) else "\n".join(turn.content for turn in text if turn.role != "system")


def setting_of(text: Text) -> str:
    """What the system turns of a prompt say; empty for plain text."""
    return "" if isinstance(text, str) else "\n".join(turn.content for turn in text if turn.role == "system")


def shingles(text: str) -> Shingles:
    """A text's runs of three words (Broder 1997); a shorter text is one run, one without words is itself.

    Args:
        text: any.

    Returns:
        At least one run.
    """
    found = words(text) or [text.strip()]
    return frozenset(tuple(found[i : i + _SHINGLE]) for i in range(max(1, len(found) - _SHINGLE + 1)))


def jaccard(first: frozenset[Item], second: frozenset[Item]) -> float:
    """|A ∩ B| / |A ∪ B| of two sets of which one is not empty."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def near_pairs(
    queries: Sequence[frozenset[Item]],
    rows: Sequence[frozenset[Item]],
    keep: Callable[[int, int], bool] = lambda query, row: True,
    *,
    near: float = NEAR,
) -> Iterator[tuple[int, int]]:
    """For each query the first row found that is near it: exact, by the prefix filter (Chaudhuri et al. 2006).

    Two sets of similarity t or more must share an item among the rarest |A| − ⌈t·|A|⌉ + 1 of either, so only rows that
    do are compared.

    Args:
        queries: sets that are not empty.
        rows: likewise; the same sequence for pairs within one collection.
        keep: tells of a query's and a row's index whether the pair is of interest.
        near: least Jaccard similarity, in (0, 1].

    Yields:
        Indices of a query and of its row; each query at most once.
    """
    frequency = Counter(item for group in (queries, rows) for members in group for item in members)

    def rarest(members: frozenset[Item]) -> list[Item]:
        count = len(members) - math.ceil(near * len(members) - 1e-9) + 1
        return sorted(members, key=lambda item: (frequency[item], item))[:count]

    index: dict[Item, list[int]] = {}
    for row, members in enumerate(rows):
        for item in rarest(members):
            index.setdefault(item, []).append(row)
    for query, members in enumerate(queries):
        seen: set[int] = set()
        candidates = (row for item in rarest(members) for row in index.get(item, ()))
        for row in candidates:
            if row in seen:
                continue
            seen.add(row)
            if keep(query, row) and jaccard(members, rows[row]) >= near:
                yield query, row
                break
