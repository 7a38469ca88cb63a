"""How two sets of answers differ in outward style, whatever they say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from personality.preflight.similarity import words

MOST = 10.0
"""Bound of a standardized gap: two sides that never vary are infinitely many standard deviations apart."""

_SENTENCE = re.compile(r"[^.!?。！？]*[^.!?。！？\s][^.!?。！？]*")
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_MARKUP = re.compile(r"\*\*|^#{1,6}\s|```", re.MULTILINE)

FEATURES: dict[str, Callable[[str], float]] = {
    "sentences": lambda text: float(len(_SENTENCE.findall(text))),
    "questions": lambda text: float("?" in text or "？" in text),
    "exclamations": lambda text: float("!" in text or "！" in text),
    "lists": lambda text: float(_LIST.search(text) is not None),
    "markup": lambda text: float(_MARKUP.search(text) is not None),
    "commas per word": lambda text: text.count(",") / max(1, len(words(text))),
    "letters per word": lambda text: float(np.mean([len(word) for word in words(text)] or [0])),
}
"""Figures of one answer: a count, a rate, or 1 and 0 for whether it has something."""


def compare_styles(chosen: Sequence[str], rejected: Sequence[str]) -> dict[str, dict[str, float]]:
    """Style of chosen against rejected answers.

    Args:
        chosen, rejected: answers, at least one of each.

    Returns:
        For each of `FEATURES` the mean of `chosen`, that of `rejected`, and the standardized `gap`: the difference over
        the root of the mean variance (Cohen's d), within ±10.
    """
    found = {}
    for name, feature in FEATURES.items():
        ours = np.array([feature(text) for text in chosen])
        theirs = np.array([feature(text) for text in rejected])
        difference = float(ours.mean() - theirs.mean())
        spread = float(np.sqrt((ours.var() + theirs.var()) / 2))
        gap = difference / max(spread, abs(difference) / MOST) if difference else 0.0
        found[name] = {"chosen": float(ours.mean()), "rejected": float(theirs.mean()), "gap": gap}
    return found


def common_opening(texts: Sequence[str]) -> dict[str, Any]:
    """The two words with which most of the answers begin.

    Args:
        texts: answers, at least one.

    Returns:
        `words`, and the `share` of answers that begin so.
    """
    openings = Counter(" ".join(words(text)[:2]) for text in texts)
    opening, count = openings.most_common(1)[0]
    return {"words": opening, "share": count / len(texts)}


def telling_word(chosen: Sequence[str], rejected: Sequence[str]) -> tuple[str, float]:
    """The word that best tells the sides of the pairs apart, always in the same direction.

    Args:
        chosen, rejected: the answers of pairs, in the same order.

    Returns:
        The word, and the share of pairs in which one side has it and the other has not, less the share in which it is
        the other way round. At 1 no pair points the other way.
    """
    net: Counter[str] = Counter()
    for ours, theirs in zip(chosen, rejected, strict=True):
        first, second = set(words(ours)), set(words(theirs))
        net.update(first - second)
        net.subtract(second - first)
    if not net:
        return "", 0.0
    word, count = max(net.items(), key=lambda item: (abs(item[1]), item[0]))
    return word, abs(count) / len(chosen)
