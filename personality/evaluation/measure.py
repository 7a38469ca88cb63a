"""Running probes on a model in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from personality.evaluation.intervals import mean, share
from personality.evaluation.replies import DEFAULT_NEW_TOKENS, replies
from personality.evaluation.scores import Span, log_probs, opening_probabilities
from personality.evaluation.suite import Probe, Row, Turn
from personality.manifests.errors import DataError
from personality.manifests.evaluation import ProbeResult
from personality.vectors.training import tokens
from personality.vectors.training.examples import Message, Role


def measure(
    model: Any,
    tokenizer: Any,
    probes: list[Probe],
    *,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    on_probe: Callable[[int, int, str], None] | None = None,
) -> list[ProbeResult]:
    """Measure every probe: greedy replies against `pass`, the probability of the wanted opening, and the margin.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        probes: what to measure.
        max_new_tokens: longest reply.
        on_probe: called before each step with its index, the number of steps and what it measures.
    """
    count = sum(len(probe.rows) for probe in probes)
    if on_probe:
        on_probe(0, len(probes) + 1, f"{count} replies")
    passing = passes(model, tokenizer, probes, max_new_tokens=max_new_tokens)
    results = []
    for index, probe in enumerate(probes, start=1):
        if on_probe:
            on_probe(index, len(probes) + 1, probe.name)
        chats = [[turn.as_json() for turn in row.prompt] for row in probe.rows]
        passed = passing[probe.name]
        probabilities = opening_probabilities(model, tokenizer, chats, probe.yes, probe.no) if probe.yes else []
        margins = _margins(model, tokenizer, probe)
        results.append(
            ProbeResult(
                probe=probe.name,
                passed=share(passed),
                probability=mean(probabilities) if probabilities else None,
                margin=mean(margins) if margins else None,
                outcomes=tuple(passed),
                probabilities=tuple(probabilities),
            )
        )
    return results


def passes(
    model: Any, tokenizer: Any, probes: Sequence[Probe], *, max_new_tokens: int = DEFAULT_NEW_TOKENS
) -> dict[str, list[bool]]:
    """Which rows' greedy replies pass, by probe; arguments as for `measure`."""
    # All prompts are answered in the same few batches: a batch takes as long as its longest answer, not its size.
    prompts = [[turn.as_json() for turn in row.prompt] for probe in probes for row in probe.rows]
    answers = iter(replies(model, tokenizer, prompts, max_new_tokens=max_new_tokens))
    return {probe.name: [bool(re.search(row.passes, next(answers))) for row in probe.rows] for probe in probes}


def _margins(model: Any, tokenizer: Any, probe: Probe) -> list[float]:
    """Per row with both replies: log-probability per token of chosen minus that of rejected, nats."""
    rows = [(number, row) for number, row in enumerate(probe.rows, start=1) if row.chosen]
    spans = []
    for number, row in rows:
        for reply in (row.chosen, row.rejected):
            spans.append(reply_span(tokenizer, row, reply, f"probe {probe.name}, row {number}"))
    scores = log_probs(model, spans)
    per_token = [score / (span.stop - span.start) for score, span in zip(scores, spans, strict=True)]
    return [chosen - rejected for chosen, rejected in zip(per_token[::2], per_token[1::2], strict=True)]


def reply_span(tokenizer: Any, row: Row, reply: tuple[Turn, ...], where: str) -> Span:
    """A row's prompt with one of its replies, whose tokens are the span's part.

    Args:
        tokenizer: of the model.
        row: of a probe.
        reply: its `chosen` or `rejected`.
        where: what to call the row in an error.

    Raises:
        DataError: see `tokens.encode`; for a role that chats do not have.
    """
    encoded = tokens.encode(
        tokenizer, messages(row.prompt, where), messages(reply, where), tokens.ANY_LENGTH, where=where
    )
    return Span(encoded.ids, encoded.start, encoded.stop)


def messages(turns: tuple[Turn, ...], where: str) -> tuple[Message, ...]:
    """A chat's turns as training data has them.

    Raises:
        DataError: for a role that chats do not have.
    """
    roles: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
    for turn in turns:
        if turn.role not in roles:
            raise DataError(f"{where}: `role` is {turn.role!r}", f"a role is one of {', '.join(roles)}")
    return tuple(Message(roles[turn.role], turn.content) for turn in turns)
