"""What is measured of pairs on the base: likelihood of both sides, its own replies, lengths."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personality.evaluation.intervals import mean, share
from personality.manifests.evaluation import Figure
from personality.preflight.likelihood import Array, answer_log_probs, own_replies
from personality.vectors.training.examples import Example
from personality.vectors.training.tokens import Encoded

SCORED = 256
"""Most examples whose answers are scored; beyond that a seeded draw, which bounds the time on large data."""
SAMPLED = 24
"""Prompts that the base replies to itself."""
IMPROBABLE = 1e-3
"""Probability below which a token counts as something that the base would not say."""
_LONGEST_REPLY = 128
_COMMON = 0.1


@dataclass(frozen=True)
class Dialogue:
    """An example with its tokens."""

    example: Example
    chosen: Encoded
    rejected: Encoded | None


@dataclass(frozen=True)
class Surprises:
    """Tokens of the chosen answers that the base gives less than `IMPROBABLE` and that are not in the prompt.

    A manner is the same few tokens again and again; facts are a few in each answer, but different ones; what the base
    could not write at all surprises it everywhere.

    Attributes:
        answers: share of answers that hold one.
        tokens: their share of the answers' tokens.
        weight: their share of the answers' whole surprisal (−log p).
        common: share of that weight on tokens that surprise in more than a tenth of the answers.
    """

    answers: float
    tokens: float
    weight: float
    common: float

    @property
    def look_like_facts(self) -> bool:
        """Whether what surprises is few tokens, in most answers, seldom the same."""
        return self.answers >= 0.5 and self.tokens <= 0.5 <= self.weight and self.common < 0.5


@dataclass(frozen=True)
class Measures:
    """Log-probabilities per token (nats) under the base, and what follows from them.

    Attributes:
        dialogues: the n that were scored, of which p have a rejected answer.
        chosen: n arrays (answer tokens,).
        rejected: n arrays, None without a rejected answer.
        own: the base's own replies to the prompts of `sampled`.
        sampled: indices into the dialogues.
    """

    dialogues: tuple[Dialogue, ...]
    chosen: tuple[Array, ...]
    rejected: tuple[Array | None, ...]
    own: tuple[Array, ...]
    sampled: tuple[int, ...]

    def margins(self, side: str | None = None) -> list[float]:
        """Mean log-probability of the chosen less that of the rejected answer, for each pair (of one side)."""
        return [
            float(chosen.mean() - rejected.mean())
            for dialogue, chosen, rejected in zip(self.dialogues, self.chosen, self.rejected, strict=True)
            if rejected is not None and side in (None, dialogue.example.side)
        ]

    def prefers_rejected(self, side: str | None = None) -> Figure | None:
        """Share of pairs (of one side) whose rejected answer the base gives more per token; None without pairs."""
        margins = self.margins(side)
        return share([margin < 0 for margin in margins]) if margins else None

    def chosen_gap(self) -> Figure:
        """How far the chosen answers are below the base's own replies to the same prompts."""
        rows = zip(self.sampled, self.own, strict=True)
        return mean([float(own.mean() - self.chosen[row].mean()) for row, own in rows])

    def rejected_gap(self) -> Figure | None:
        """Likewise for the rejected answers; None when none of the sampled has one."""
        gaps = []
        for row, own in zip(self.sampled, self.own, strict=True):
            rejected = self.rejected[row]
            if rejected is not None:
                gaps.append(float(own.mean() - rejected.mean()))
        return mean(gaps) if gaps else None

    def length_ratio(self) -> Figure | None:
        """Tokens of the chosen by those of the rejected answer, geometric mean over pairs; None without pairs."""
        pairs = [(a, b) for a, b in zip(self.chosen, self.rejected, strict=True) if b is not None]
        if not pairs:
            return None
        logs = mean([float(np.log(len(chosen) / len(rejected))) for chosen, rejected in pairs])
        return Figure(
            value=float(np.exp(logs.value)), low=float(np.exp(logs.low)), high=float(np.exp(logs.high)), n=logs.n
        )

    def surprises(self) -> Surprises:
        """What in the chosen answers the base would not say, and whether it is the same in all of them."""
        holders: Counter[tuple[int, int]] = Counter()
        weights: Counter[tuple[int, int]] = Counter()
        answers = tokens = 0
        for dialogue, scores in zip(self.dialogues, self.chosen, strict=True):
            ids, start = dialogue.chosen.ids, dialogue.chosen.start
            prompt = set(ids[:start])
            # Told apart by the token before them too: tokenizers cut unknown names into the same few pieces.
            found = [
                ((ids[start + place - 1], ids[start + place]), -float(scores[place]))
                for place in np.flatnonzero(scores < np.log(IMPROBABLE)).tolist()
                if ids[start + place] not in prompt
            ]
            holders.update({kind for kind, _ in found})
            for kind, weight in found:
                weights[kind] += weight  # type: ignore[assignment]
            answers += bool(found)
            tokens += len(found)
        count = len(self.chosen)
        total = sum(weights.values())
        common = sum(weights[kind] for kind, number in holders.items() if number > max(1, _COMMON * count))
        return Surprises(
            answers=answers / count,
            tokens=tokens / sum(len(scores) for scores in self.chosen),
            weight=total / -sum(float(scores.sum()) for scores in self.chosen) if total else 0.0,
            common=common / total if total else 0.0,
        )


def measure_base(model: Any, tokenizer: Any, dialogues: Sequence[Dialogue], *, seed: int) -> Measures:
    """Score the answers of some dialogues and let the base reply to some of their prompts.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        dialogues: at least one.
        seed: of the draws and of sampling.

    Returns:
        The measures of at most `SCORED` dialogues and `SAMPLED` replies.

    Raises:
        PersonaError: the model's predictions are not finite.
    """
    draw = random.Random(seed)
    rows = sorted(draw.sample(range(len(dialogues)), min(SCORED, len(dialogues))))
    scored = tuple(dialogues[row] for row in rows)
    texts = [dialogue.chosen for dialogue in scored]
    texts += [dialogue.rejected for dialogue in scored if dialogue.rejected is not None]
    scores = iter(answer_log_probs(model, texts))
    chosen = tuple(next(scores) for _ in scored)
    rejected = tuple(None if dialogue.rejected is None else next(scores) for dialogue in scored)
    sampled = tuple(sorted(draw.sample(range(len(scored)), min(SAMPLED, len(scored)))))
    asked = [scored[row].chosen for row in sampled]
    new_tokens = min(_LONGEST_REPLY, 2 * max(item.stop - item.start for item in asked))
    own = own_replies(model, tokenizer, asked, seed=seed, new_tokens=new_tokens)
    return Measures(scored, chosen, rejected, tuple(answer_log_probs(model, own)), sampled)
