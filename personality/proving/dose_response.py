"""What a steering vector does at one scale after another, and up to where text holds together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from personality.evaluation.measure import passes
from personality.evaluation.repetition import repetition
from personality.evaluation.suite import Probe
from personality.manifests.steering_record import DosePoint
from personality.proving.general_text import GeneralText
from personality.vectors.extraction.base_predictions import BasePredictions
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection, injections
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.training.tokens import pad_id

DOSES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

REPETITION_RISE = 0.2
PERPLEXITY_FACTOR = 2.0
GENERAL_FALL = 0.2
"""Text has fallen apart when greedy replies repeat a fifth more of their 4-grams than the base's, when general replies
have become twice as perplexing (one bit per token), when the general probes, where there are any, answer a fifth less
of what the base answers, or when the model predicts NaN."""

GENERAL = "general."
"""How the names of general probes begin."""

_PROBE_ROWS = 16
_NEW_TOKENS = 48
_PROMPTS = 16

OnStep = Callable[[int, int, str], None]


class Coherence:
    """Whether the text of a steered model holds together, on held-out general text.

    Args:
        model: the base, unsteered, in evaluation mode.
        tokenizer: its tokenizer.
        general: whose held-out part is used.

    Attributes:
        base_perplexity: exp of the mean −log p per token of the held-out replies.
        base_repetition: seq-rep-4 of the base's greedy replies.
    """

    def __init__(self, model: Any, tokenizer: Any, general: GeneralText) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._heads = [text.ids[: text.start] for text in general.held_out[:_PROMPTS]]
        self.predictions = BasePredictions(model, general.held_out, "response", pad_id=pad_id(tokenizer))
        self.base_perplexity = math.exp(float(self.predictions.nll.double().mean()))
        self.base_repetition = self._repetition(())

    def look(self, acting: Sequence[Injection]) -> tuple[float | None, float, bool]:
        """Perplexity (None for a model that predicts NaN), repetition, and whether the text holds together."""
        perplexity = finite_exp(float(self.predictions.drift(self._model, acting).nll.double().mean()))
        repeated = self._repetition(acting)
        holds = (
            perplexity is not None
            and perplexity <= PERPLEXITY_FACTOR * self.base_perplexity
            and repeated <= self.base_repetition + REPETITION_RISE
        )
        return perplexity, repeated, holds

    def _repetition(self, acting: Sequence[Injection]) -> float:
        with steered(self._model, acting):
            return repetition(self._model, self._tokenizer, self._heads, new_tokens=_NEW_TOKENS)


def finite_exp(value: float) -> float | None:
    """The exponential of a value; None where that is no number."""
    return math.exp(value) if math.isfinite(value) and value < 700 else None


def dose_response(
    model: Any,
    tokenizer: Any,
    vector: SteeringVector,
    base: BasePredictions,
    coherence: Coherence,
    probes: Sequence[Probe] = (),
    *,
    scales: Sequence[float] = DOSES,
    on_step: OnStep | None = None,
) -> tuple[DosePoint, ...]:
    """One point of the curve for each scale.

    Args:
        model: the base, unsteered, in evaluation mode.
        tokenizer: its tokenizer.
        vector: calibrated.
        base: predictions at the tokens where the vector acts.
        coherence: made once for the base.
        probes: greedy replies to the first 16 rows of each are looked at; those named `general.…` also tell whether the
            text holds together.
        scales: in rising order.
        on_step: called before each step with its number, the number of steps, and what it is.
    """
    few = [probe.first(_PROBE_ROWS) for probe in probes]
    before = general_share(passes(model, tokenizer, [probe for probe in few if probe.name.startswith(GENERAL)]))
    points = []
    for number, scale in enumerate(scales):
        if on_step:
            on_step(number, len(scales), f"scale {scale:g}")
        acting = injections(vector, scale)
        kl_95 = base.drift(model, acting).kl_95
        perplexity, repeated, holds = coherence.look(acting)
        with steered(model, acting):
            found = passes(model, tokenizer, few)
        if before is not None:
            holds = holds and (general_share(found) or 0.0) >= before - GENERAL_FALL
        points.append(
            DosePoint(
                scale=scale,
                kl_95=kl_95 if math.isfinite(kl_95) else None,
                perplexity=perplexity,
                repetition=repeated,
                coherent=holds,
                probes={name: sum(rows) / len(rows) for name, rows in found.items()},
            )
        )
    return tuple(points)


def general_share(passing: Mapping[str, Sequence[bool]]) -> float | None:
    """Share of the general probes' rows that pass, over all of them; None without any."""
    rows = [row for name, found in passing.items() if name.startswith(GENERAL) for row in found]
    return sum(rows) / len(rows) if rows else None


def coherent_to(points: Sequence[DosePoint]) -> float | None:
    """The greatest scale up to which every point holds together; None when the first does not."""
    last = None
    for point in sorted(points, key=lambda point: point.scale):
        if not point.coherent:
            break
        last = point.scale
    return last
