"""What training did to everything else: held-out general text before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from personality.evaluation.intervals import mean
from personality.evaluation.scores import Span, log_probs
from personality.manifests.evaluation import Figure
from personality.vectors.training.examples import Example
from personality.vectors.training.tokens import ANY_LENGTH, encode


@dataclass(frozen=True)
class Health:
    """How a model does on text that it was not trained on.

    Attributes:
        nll: mean over examples of the negative log-likelihood per response token, nats, with its interval.
        per_example: that of each example, for paired comparison.
        kl: mean KL divergence per token from the base, nats; None where it was not measured.
    """

    nll: Figure
    per_example: tuple[float, ...]
    kl: float | None

    def since(self, before: Health | None) -> dict[str, float]:
        """The figures for a manifest, rounded for reading."""
        found = {"nll after": self.nll.value}
        if before is not None:
            found["nll before"] = before.nll.value
        if self.kl is not None:
            found["kl"] = self.kl
        return {name: round(value, 5) for name, value in found.items()}


def measure_health(model: Any, tokenizer: Any, held_out: Sequence[Example], kl: float | None = None) -> Health | None:
    """Score held-out general examples; None when there are none.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        held_out: examples that no run was trained on.
        kl: measured elsewhere, to keep with it.
    """
    if not held_out:
        return None
    encoded = [encode(tokenizer, item.prompt, item.chosen, ANY_LENGTH, where=item.where) for item in held_out]
    spans = [Span(item.ids, item.start, item.stop) for item in encoded]
    scores = log_probs(model, spans)
    per_example = tuple(-score / (span.stop - span.start) for score, span in zip(scores, spans, strict=True))
    return Health(mean(per_example), per_example, kl)
