"""Running probes on a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from personality.evaluation.intervals import mean, share
from personality.evaluation.probe import Probe, Row, Turn
from personality.evaluation.replies import DEFAULT_NEW_TOKENS, replies
from personality.evaluation.scorers import score_replies
from personality.evaluation.scores import Span, log_probs, opening_probabilities, opening_shares
from personality.manifests.errors import DataError
from personality.manifests.evaluation import ProbeResult, Sampling
from personality.manifests.scorer_entry import JudgeEntry, LabelEntry
from personality.vectors.training import tokens
from personality.vectors.training.examples import Message, Role

_GROUP_ROWS = 256


def measure(
    model: Any,
    tokenizer: Any,
    probes: Sequence[Probe],
    *,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    on_probe: Callable[[int, int, str], None] | None = None,
    on_result: Callable[[Probe, ProbeResult], None] | None = None,
) -> list[ProbeResult]:
    """Measure every probe: replies by its scorer, the probability of the wanted opening, the margin, and the bypass.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        probes: what to measure.
        max_new_tokens: longest reply.
        on_probe: called before each step with its index, the number of steps and what it measures.
        on_result: called with each finished probe.

    Raises:
        DataError, JudgeError: when a judge is needed and gives no verdicts.
        PersonaError: when the model has fallen apart.
    """
    groups = _groups(probes)
    steps = len(probes) + len(groups)
    results: list[ProbeResult] = []
    for number, group in enumerate(groups):
        if on_probe:
            on_probe(len(results) + number, steps, f"{sum(len(probe.rows) for probe in group)} replies")
        answers = _greedy(model, tokenizer, group, max_new_tokens)
        for probe in group:
            if on_probe:
                on_probe(len(results) + number + 1, steps, probe.name)
            result = _result(model, tokenizer, probe, answers[probe.name], max_new_tokens)
            results.append(result)
            if on_result:
                on_result(probe, result)
    return results


def _groups(probes: Sequence[Probe]) -> list[list[Probe]]:
    """Probes whose prompts are answered together: a batch takes as long as its longest answer, not its size; but what
    an interruption may cost is bounded.
    """
    groups: list[list[Probe]] = []
    rows = _GROUP_ROWS
    for probe in probes:
        rows += len(probe.rows)
        if rows > _GROUP_ROWS:
            groups.append([])
            rows = len(probe.rows)
        groups[-1].append(probe)
    return groups


def passes(
    model: Any, tokenizer: Any, probes: Sequence[Probe], *, max_new_tokens: int = DEFAULT_NEW_TOKENS
) -> dict[str, list[bool]]:
    """Which rows' greedy replies pass, by probe; arguments as for `measure`."""
    answers = _greedy(model, tokenizer, probes, max_new_tokens)
    found = {}
    for probe in probes:
        if isinstance(probe.scorer, LabelEntry):
            found[probe.name] = [right for right, _ in label_scores(model, tokenizer, probe, probe.scorer.labels)]
        else:
            scores = score_replies(probe, probe.rows, probe.prompts(), answers[probe.name], tokenizer)
            found[probe.name] = [score.passed for score in scores]
    return found


def _greedy(model: Any, tokenizer: Any, probes: Sequence[Probe], max_new_tokens: int) -> dict[str, list[str]]:
    """Greedy replies of the probes that need them, all in the same few batches."""
    written = [probe for probe in probes if not isinstance(probe.scorer, LabelEntry)]
    prompts = [prompt for probe in written for prompt in probe.prompts()]
    answers = iter(replies(model, tokenizer, prompts, max_new_tokens=max_new_tokens) if prompts else [])
    found: dict[str, list[str]] = {probe.name: [] for probe in probes}
    found.update({probe.name: [next(answers) for _ in probe.rows] for probe in written})
    return found


def label_scores(model: Any, tokenizer: Any, probe: Probe, labels: Sequence[str]) -> list[tuple[bool, float]]:
    """Row by row: whether the right label is the likeliest, and its probability among the labels, 0 to 1."""
    found = opening_shares(model, tokenizer, probe.prompts(), labels)
    right = [labels.index(row.label) for row in probe.rows]
    return [(max(row) == row[at], row[at]) for row, at in zip(found, right, strict=True)]


def _result(model: Any, tokenizer: Any, probe: Probe, answers: Sequence[str], max_new_tokens: int) -> ProbeResult:
    prompts = probe.prompts()
    probabilities: list[float] = []
    grades: list[float] = []
    if isinstance(probe.scorer, LabelEntry):
        labeled = label_scores(model, tokenizer, probe, probe.scorer.labels)
        passed, probabilities = [right for right, _ in labeled], [value for _, value in labeled]
    else:
        scores = score_replies(probe, probe.rows, prompts, answers, tokenizer)
        passed = [score.passed for score in scores]
        if isinstance(probe.scorer, JudgeEntry) and probe.scorer.verdict == "0-10":
            grades = [score.value for score in scores]
        if probe.yes:
            probabilities = opening_probabilities(model, tokenizer, prompts, probe.yes, probe.no)
    margins = _margins(model, tokenizer, probe)
    shares = _sampled(model, tokenizer, probe, max_new_tokens) if probe.samples else []
    bypasses = _bypasses(model, tokenizer, probe, max_new_tokens) if probe.asked else []
    return ProbeResult(
        probe=probe.name,
        passed=share(passed),
        probability=mean(probabilities) if probabilities else None,
        margin=mean(margins) if margins else None,
        outcomes=tuple(passed),
        probabilities=tuple(probabilities),
        margins=tuple(margins),
        digest=probe.digest,
        sampled=mean(shares) if shares else None,
        shares=tuple(shares),
        sampling=Sampling(samples=probe.samples, temperature=probe.temperature, seed=probe.seed) if shares else None,
        grade=mean(grades) if grades else None,
        grades=tuple(grades),
        bypass=share(bypasses) if bypasses else None,
        bypasses=tuple(bypasses),
    )


def _sampled(model: Any, tokenizer: Any, probe: Probe, max_new_tokens: int) -> list[float]:
    """Row by row: share of sampled replies that pass. Replies of one row are not independent: the row is the unit."""
    rows = [row for row in probe.rows for _ in range(probe.samples)]
    prompts = [prompt for prompt in probe.prompts() for _ in range(probe.samples)]
    sampled = replies(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=probe.temperature, seed=probe.seed
    )
    scores = iter(score_replies(probe, rows, prompts, sampled, tokenizer))
    return [sum(next(scores).passed for _ in range(probe.samples)) / probe.samples for _ in probe.rows]


def _bypasses(model: Any, tokenizer: Any, probe: Probe, max_new_tokens: int) -> list[bool]:
    """Row by row: whether the habit that the probe's behavior displaces comes when it is asked for, which is to say
    whether the greedy reply then fails.
    """
    prompts = probe.asked_prompts()
    if isinstance(probe.scorer, LabelEntry):
        rows = tuple(
            row.model_copy(update={"prompt": tuple(Turn(**turn) for turn in prompt)})
            for row, prompt in zip(probe.rows, prompts, strict=True)
        )
        labeled = label_scores(model, tokenizer, replace(probe, rows=rows), probe.scorer.labels)
        return [not right for right, _ in labeled]
    answers = replies(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
    return [not score.passed for score in score_replies(probe, probe.rows, prompts, answers, tokenizer)]


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
