"""What an arm (the base, the vector, a placebo, a prompt) does to a behavior, in one form for probes and for pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from personality.evaluation.intervals import paired_difference, paired_share_difference, share
from personality.evaluation.measure import measure
from personality.evaluation.scores import Span, log_probs
from personality.evaluation.suite import Probe
from personality.manifests.evaluation import Figure
from personality.manifests.steering_record import ProbeEffect
from personality.proving.prompting import Prompting
from personality.vectors.extraction.passages import Pair
from personality.vectors.training.examples import Text
from personality.vectors.training.tokens import ANY_LENGTH, encode

PAIRS = "held-out pairs"
"""The name under which pairs stand in for a probe."""


@dataclass(frozen=True)
class Outcome:
    """What one probe, or the held-out pairs, gave in one arm.

    Attributes:
        passed: row by row.
        margin: mean log-probability per token of the wanted minus the other reply, nats; None without replies.
        margins: of the pairs one by one; empty for probes.
        probability: mean probability of the wanted opening; None where the probe declares none.
    """

    passed: tuple[bool, ...]
    margin: float | None = None
    margins: tuple[float, ...] = ()
    probability: float | None = None

    @property
    def share(self) -> float:
        """Of the rows that pass."""
        return sum(self.passed) / len(self.passed)


Arm = Mapping[str, Outcome]
"""By probe."""


def probe_arm(
    model: Any, tokenizer: Any, probes: Sequence[Probe], on_probe: Callable[[int, int, str], None] | None = None
) -> dict[str, Outcome]:
    """Measure probes on a model as it is now."""
    results = measure(model, tokenizer, list(probes), on_probe=on_probe)
    return {
        result.probe: Outcome(
            passed=result.outcomes,
            margin=None if result.margin is None else result.margin.value,
            probability=None if result.probability is None else result.probability.value,
        )
        for result in results
    }


def without_openings(probe: Probe) -> Probe:
    """A probe that is measured faster: by its replies and margins only."""
    return replace(probe, yes=(), no=(), samples=0, asked="")


def usable(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose two replies can be compared: with one prompt, and with replies."""
    return [pair for pair in pairs if pair.same_prompt and pair.positive.response and pair.negative.response]


def pair_arm(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], prompting: Prompting | None = None
) -> dict[str, Outcome]:
    """Score held-out pairs on a model as it is now; a pair passes when its wanted reply is the likelier one per token.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        pairs: see `usable`.
        prompting: ask with it.
    """
    spans = []
    for number, pair in enumerate(pairs):
        prompt: Text = pair.positive.prompt if prompting is None else prompting.after(pair.positive.prompt, number)
        for response in (pair.positive.response, pair.negative.response):
            assert response is not None
            text = encode(tokenizer, prompt, response, ANY_LENGTH, where=pair.where or f"pair {number + 1}")
            spans.append(Span(text.ids, text.start, text.stop))
    scores = log_probs(model, spans)
    each = [score / (span.stop - span.start) for score, span in zip(scores, spans, strict=True)]
    margins = tuple(wanted - other for wanted, other in zip(each[::2], each[1::2], strict=True))
    return {PAIRS: Outcome(tuple(margin > 0 for margin in margins), sum(margins) / len(margins), margins)}


def effect_of(name: str, base: Arm, steered: Arm, placebos: Sequence[Arm], prompted: Arm | None) -> ProbeEffect:
    """One probe's figures in all arms.

    Args:
        name: of the probe.
        base, steered: arms that have it.
        placebos: arms that may have it.
        prompted: an arm that may have it.
    """
    before, after = base[name], steered[name]
    idle = [arm[name] for arm in placebos if name in arm]
    asked = prompted.get(name) if prompted is not None else None
    change = paired_share_difference(before.passed, after.passed)
    shares = [outcome.share for outcome in idle]
    best = None
    if shares:
        best = max(shares) if change.value >= 0 else min(shares)
    named = {"base": before, "steered": after} | ({"prompted": asked} if asked else {})
    margins = {arm: outcome.margin for arm, outcome in named.items() if outcome.margin is not None}
    idle_margins = [outcome.margin for outcome in idle if outcome.margin is not None]
    if idle_margins:
        margins["placebo"] = sum(idle_margins) / len(idle_margins)
    return ProbeEffect(
        probe=name,
        base=share(before.passed),
        steered=share(after.passed),
        change=change,
        placebo=sum(shares) / len(shares) if shares else None,
        placebo_best=best,
        prompted=share(asked.passed) if asked else None,
        margins=margins,
        probabilities={arm: o.probability for arm, o in named.items() if o.probability is not None},
    )


def pooled_change(base: Arm, other: Arm, names: Sequence[str]) -> Figure:
    """The change over the rows of several probes together: of the share that passes, or of the pairs' margin."""
    if tuple(names) == (PAIRS,):
        return paired_difference(base[PAIRS].margins, other[PAIRS].margins)
    before = [passed for name in names for passed in base[name].passed]
    after = [passed for name in names for passed in other[name].passed]
    return paired_share_difference(before, after)
