"""Whether a version is well: general text, how its own text holds together, and how far it is from the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from personality.changing_model import ChangingModel
from personality.evaluation.intervals import clustered, mean, paired_difference, paired_share_difference, share
from personality.evaluation.measure import reply_span
from personality.evaluation.repetition import repeated_grams
from personality.evaluation.replies import end_ids, reply_ids, until_end
from personality.evaluation.scores import Span, encode, log_probs, prompt_text
from personality.evaluation.suite import Probe, Row, general_text
from personality.manifests.canonical import digest
from personality.manifests.evaluation import Figure, HealthResult
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import threads_for
from personality.vectors.extraction.base_predictions import BasePredictions, percentile
from personality.vectors.training.tokens import Encoded, pad_id

NEW_TOKENS = 48
_PROMPTS = 64
_TEXTS = 256
_KL_TOKENS = 2048
FIGURES = ("nll", "kl", "repetition", "distinct_1", "distinct_2", "ended")


def health_rows(repository: Repository, probes: Sequence[Probe]) -> tuple[list[Row], list[Row]]:
    """The general text of a repository, and the rows whose prompts are answered: of the text itself, or of the probes
    where that is plain text. No rows at all where there is no text.
    """
    text = general_text(repository)
    asked = [row for row in text if row.prompt] or [row for probe in probes for row in probe.rows]
    return text, asked if text else []


def health_digest(text: Sequence[Row], prompts: Sequence[Row]) -> str:
    """Identity of what is measured: figures of different digests are not compared."""
    rows = [[row.as_json() for row in part] for part in (text, prompts)]
    return digest({"rows": rows, "limits": [NEW_TOKENS, _PROMPTS, _TEXTS, _KL_TOKENS]})


def measure_health(
    changing: ChangingModel, base: Personality, personality: Personality, text: Sequence[Row], prompts: Sequence[Row]
) -> HealthResult:
    """Measure a version's health.

    - `nll`: per token of held-out general text, by teacher forcing, averaged within a row and then over rows.
    - `kl`: at each token of the base's own greedy replies, KL(base ‖ version) = Σ_v p(v) (log p(v) − log q(v)) over
      the whole vocabulary, averaged within a reply and then over replies; `kl_95` is over all tokens.
    - `repetition`: seq-rep-4 (Welleck et al. 2019, arXiv 1908.04319, section 5) of the version's greedy replies.
    - `distinct_1`, `distinct_2`: distinct n-grams by their number (Li et al. 2016, arXiv 1510.03055), of
      tokens and within each reply, so that a reply is the unit of the interval.
    - `ended`: whether a greedy reply ends within 48 tokens.

    Args:
        changing: the model that takes on the base and then the version.
        base: the personality without uses.
        personality: the version's.
        text: see `general_text`; of more than 256 rows as many, spread evenly, are used.
        prompts: rows whose prompts are answered; of more than 64 as many, spread evenly.

    Raises:
        DataError: when a row cannot be put to the model.
        PersonaError: when the model has fallen apart.
    """
    kept = _spread(text, _TEXTS)
    with changing.taking(base) as (model, tokenizer), threads_for(model):
        heads = [
            encode(tokenizer, prompt_text(tokenizer, [turn.as_json() for turn in row.prompt]))
            for row in _spread(prompts, _PROMPTS)
        ]
        predictions = _base_predictions(model, tokenizer, heads)
    with changing.taking(personality) as (model, tokenizer), threads_for(model):
        spans = [span for number, row in enumerate(kept, start=1) if (span := _span(tokenizer, row, number)).stop > 1]
        scores = log_probs(model, spans)
        nll = [-score / (span.stop - span.start) for score, span in zip(scores, spans, strict=True)]
        divergences = torch.split(predictions.drift(model, ()).kl.double(), predictions.lengths)
        answers = reply_ids(model, tokenizer, heads, max_new_tokens=NEW_TOKENS)
        ends = end_ids(model, tokenizer)
    written = [until_end(answer, ends) for answer in answers]
    ended = [any(token in ends for token in answer) for answer in answers]
    rows = {
        "nll": nll,
        "kl": [float(row.mean()) for row in divergences],
        "repetition": [repeated_grams(tokens) for tokens in written],
        "distinct_1": [1 - repeated_grams(tokens, 1) for tokens in written],
        "distinct_2": [1 - repeated_grams(tokens, 2) for tokens in written],
        "ended": [float(item) for item in ended],
    }
    figures = {name: mean(values) for name, values in rows.items()}
    return HealthResult(
        digest=health_digest(text, prompts),
        **{**figures, "ended": share(ended)},
        kl_95=clustered([row.tolist() for row in divergences], lambda values: percentile(torch.from_numpy(values))),
        rows={name: tuple(values) for name, values in rows.items()},
    )


def health_changes(before: HealthResult, after: HealthResult) -> dict[str, Figure]:
    """Paired differences, after − before, by the figure's name; empty when they were measured on different text."""
    if before.digest != after.digest:
        return {}
    found = {name: paired_difference(before.rows[name], after.rows[name]) for name in FIGURES}
    ended = ([value == 1 for value in item.rows["ended"]] for item in (before, after))
    return {**found, "ended": paired_share_difference(*ended)}


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many rows, from all parts alike: suites stand behind one another."""
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _base_predictions(model: Any, tokenizer: Any, heads: Sequence[list[int]]) -> BasePredictions:
    """What the base predicts along its own replies, each with the token that ends it."""
    ends = end_ids(model, tokenizer)
    texts = []
    for head, answer in zip(heads, reply_ids(model, tokenizer, heads, max_new_tokens=NEW_TOKENS), strict=True):
        ids = (*head, *answer[: len(until_end(answer, ends)) + 1])
        texts.append(Encoded(ids, len(head), len(ids)))
    return BasePredictions(model, texts, "response", pad_id=pad_id(tokenizer), most_tokens=_KL_TOKENS)


def _span(tokenizer: Any, row: Row, number: int) -> Span:
    if row.prompt:
        return reply_span(tokenizer, row, row.chosen, f"general text, row {number}")
    ids = tuple(tokenizer(row.chosen[0].content)["input_ids"])
    return Span(ids, 1, len(ids))  # a single token has nothing before it, and is left out
