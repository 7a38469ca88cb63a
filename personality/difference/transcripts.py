"""The replies that changed most between two evaluated versions, written again side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personality.changing_model import ChangingModel
from personality.evaluation.probe import Probe, Turn
from personality.evaluation.replies import replies
from personality.manifests.errors import DataError
from personality.manifests.evaluation import Evaluation, ProbeResult
from personality.manifests.personality_record import Personality
from personality.model import threads_for

LEAST_CHANGE = 0.005
"""Half a point: rows that changed less and still pass or fail are not looked at."""

_CANDIDATES = 4
"""For each reply that is to be shown, so that those with the same words in both versions can stand back."""


@dataclass(frozen=True)
class ScoredReply:
    """What one version answers, and what the evaluation gave it.

    Attributes:
        text: greedy.
        passed: whether the probe's scorer passed it.
        probability: of opening the reply the wanted way, 0 to 1; None where the probe declares none.
        margin: log-probability per token of the preferred over the rejected answer, nats; None without these.
    """

    text: str
    passed: bool
    probability: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Transcript:
    """One row of a probe with the replies of both versions.

    Attributes:
        probe: its name.
        row: number of the row, from 1.
        prompt: the chat up to the reply.
        before, after: the replies.
    """

    probe: str
    row: int
    prompt: tuple[Turn, ...]
    before: ScoredReply
    after: ScoredReply


@dataclass(frozen=True)
class RowChange:
    """How far one row moved: `size` is 1 for a reply that passes in one version only, else the greatest change of a
    continuous figure between 0 and 1; `margin` is that of the margin, nats.
    """

    probe: Probe
    index: int
    size: float
    margin: float


def changed_most(probes: Sequence[Probe], before: Evaluation, after: Evaluation, count: int) -> list[RowChange]:
    """The rows that changed most.

    The k-th row of a probe counts 1/k of its change, so that one probe in which everything changed leaves room for
    others. Equal ones come in the order of margin, suite and row.

    Args:
        probes: with which both were evaluated.
        before, after: the evaluations.
        count: at most so many.

    Raises:
        DataError: when an evaluation is not of these probes.
    """
    ranked: list[tuple[float, RowChange]] = []
    for probe in probes:
        old, new = before.result(probe.name), after.result(probe.name)
        if old is None or new is None or not len(old.outcomes) == len(new.outcomes) == len(probe.rows):
            raise DataError(
                f"the evaluations do not hold every row of the probe `{probe.name}`",
                "evaluate both versions again: `persona eval VERSION --again`",
            )
        rows = [_row_change(probe, old, new, index) for index in range(len(probe.rows))]
        rows = sorted((row for row in rows if row.size >= LEAST_CHANGE), key=lambda row: (-row.size, -row.margin))
        ranked += [(row.size / place, row) for place, row in enumerate(rows, start=1)]
    ranked.sort(key=lambda item: (-item[0], -item[1].margin))
    return [row for _, row in ranked[:count]]


def transcripts(
    model: ChangingModel,
    probes: Sequence[Probe],
    evaluations: tuple[Evaluation, Evaluation],
    personalities: tuple[Personality, Personality],
    count: int,
) -> list[Transcript]:
    """The replies that changed most, those with different words first.

    Evaluations keep scores and no texts, so both versions answer the chosen rows once more, greedily.

    Args:
        model: of the repository.
        probes: with which both were evaluated.
        evaluations, personalities: before and after.
        count: at most so many.

    Raises:
        DataError: see `changed_most`.
        IncompatibleError, NotFoundError, CorruptError: when a version cannot be composed.
    """
    rows = changed_most(probes, *evaluations, count * _CANDIDATES)
    if not rows:
        return []
    prompts = [[turn.as_json() for turn in row.probe.rows[row.index].prompt] for row in rows]
    written = []
    for personality in personalities:
        with model.taking(personality) as (taken, tokenizer), threads_for(taken):
            written.append(replies(taken, tokenizer, prompts))
    found = [_transcript(row, evaluations, texts) for row, *texts in zip(rows, *written, strict=True)]
    found.sort(key=lambda item: item.before.text == item.after.text)
    return found[:count]


def _transcript(row: RowChange, evaluations: tuple[Evaluation, Evaluation], texts: Sequence[str]) -> Transcript:
    both = []
    for evaluation, text in zip(evaluations, texts, strict=True):
        result = evaluation.result(row.probe.name)
        assert result is not None  # `changed_most` has seen it
        probability = result.probabilities[row.index] if result.probabilities else None
        both.append(ScoredReply(text, result.outcomes[row.index], probability, _margin(row.probe, result, row.index)))
    return Transcript(row.probe.name, row.index + 1, row.probe.rows[row.index].prompt, *both)


def _row_change(probe: Probe, old: ProbeResult, new: ProbeResult, index: int) -> RowChange:
    sizes = [float(old.outcomes[index] != new.outcomes[index])]
    for first, second in (
        (old.probabilities, new.probabilities),
        (old.shares, new.shares),
        (old.grades, new.grades),
    ):
        if first and second:
            sizes.append(abs(second[index] - first[index]))
    margins = [_margin(probe, result, index) for result in (old, new)]
    margin = 0.0 if margins[0] is None or margins[1] is None else abs(margins[1] - margins[0])
    return RowChange(probe, index, max(sizes), margin)


def _margin(probe: Probe, result: ProbeResult, index: int) -> float | None:
    """Of one row: margins are kept for the rows that have both answers, in their order."""
    if not result.margins or not probe.rows[index].chosen:
        return None
    return result.margins[sum(bool(row.chosen) for row in probe.rows[:index])]
