"""How much a text repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from personality.evaluation.replies import end_ids, reply_ids, until_end

_GRAM = 4


def repeated_grams(tokens: Sequence[int], size: int = _GRAM) -> float:
    """Share of a sequence's n-grams that occurred in it before: 1 − distinct / all.

    Args:
        tokens: any number.
        size: n.

    Returns:
        In [0, 1); 0 when there is no n-gram.
    """
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def repetition(model: Any, tokenizer: Any, heads: Sequence[Sequence[int]], *, new_tokens: int = 48) -> float:
    """seq-rep-4 of greedy replies (Welleck et al. 2019, arXiv 1908.04319, section 5), averaged over the replies.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        heads: token ids of prompts up to where the reply begins, at least one.
        new_tokens: longest reply.
    """
    ends = end_ids(model, tokenizer)
    found = reply_ids(model, tokenizer, heads, max_new_tokens=new_tokens)
    return sum(repeated_grams(until_end(reply, ends)) for reply in found) / len(found)
