"""What the base's own probabilities say about pairs: already there, out of reach, or off its policy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from personality.manifests.evaluation import Figure
from personality.preflight.findings import Finding
from personality.preflight.measures import IMPROBABLE, Measures
from personality.vectors.training.presets import Method, phases_of

# Nats per token by which answers lie below the base's own replies: a judgment, not a measurement. 1 is a third of the
# probability at every token, 3 a twentieth: over a sentence the base would never sample it.
_FAR = {"facts": 0.5, "change": 1.0, "no-go": 3.0}
_SAME = 0.1  # within this of its own replies, the base says such things by itself
_ALREADY = 0.95  # share of pairs that the base ranks rightly
_AGAINST = 0.5
_FEW = 10  # below so many pairs a share says little
_DPO_LENGTHS = 3.5
_LENGTHS = 2.0

INSTEAD = (
    "training on answers changes what the base does by default, not what it knows: use retrieval, synthetic-document "
    "fine-tuning or continued pre-training"
)


def check_bias(measures: Measures, method: Method) -> Iterator[Finding]:
    """Whether the base does it already, or leans the other way."""
    against = measures.prefers_rejected()
    if against is None:
        return
    margin = float(np.mean(measures.margins()))
    gap, rejected = measures.chosen_gap(), measures.rejected_gap()
    # Rejected answers that no one would give make any other look good.
    fair = rejected is not None and rejected.low <= _FAR["change"]
    if fair and against.n >= _FEW and against.value <= 1 - _ALREADY and gap.value <= _SAME:
        yield Finding(
            level="no-go",
            name="already there",
            text=f"the base prefers the chosen answer in {1 - against.value:.0%} of {against.n} pairs ({margin:+.2f} "
            f"nats/token) and gives it as much as its own replies ({-gap.value:+.2f}): there is little to train",
            advice="use the base as it is, or ask for it in a system prompt; or take examples where the base fails",
        )
    elif against.value > _AGAINST:
        text = f"the base prefers the rejected answer in {against.value:.0%} of {against.n} pairs"
        text += f" ({margin:+.2f} nats/token)"
        advice = ""
        if method == "dpo":
            text += "; DPO alone seldom turns round pairs that the base ranks wrongly (arXiv 2405.19534)"
            advice = "`--method orpo` or `--method sft-dpo`"
        yield Finding(level="note", name="base leans against it", text=text, advice=advice)


def check_policy(measures: Measures, method: Method) -> Iterator[Finding]:
    """Whether the answers are such as the base could write."""
    surprises, gap = measures.surprises(), measures.chosen_gap()
    if surprises.look_like_facts and gap.low > _FAR["facts"]:
        yield Finding(
            level="no-go",
            name="knowledge",
            text=f"the chosen answers hold what the base does not know: {surprises.answers:.0%} of them have tokens "
            f"of a probability below {IMPROBABLE:g}; these make up {surprises.weight:.0%} of all that surprises it, "
            "and they differ from answer to answer",
            advice=INSTEAD,
        )
    elif gap.low > _FAR["no-go"]:
        yield Finding(
            level="no-go",
            name="chosen out of reach",
            text=f"the chosen answers are {_gap(gap)} below the base's own replies: it could not write them",
            advice=f"let the base itself write answers of that kind, asked by a system prompt; otherwise {INSTEAD}",
        )
    elif gap.low > _FAR["change"]:
        yield Finding(
            level="change",
            name="chosen far off",
            text=f"the chosen answers are {_gap(gap)} below the base's own replies",
            advice="let the base itself rewrite them, asked by a system prompt, or bring it near first with "
            "`--method sft-dpo`",
        )
    rejected = measures.rejected_gap()
    if rejected is None or method == "sft" or rejected.low <= _FAR["change"]:
        return
    derails = rejected.low > _FAR["no-go"] and "dpo" in phases_of(method)
    yield Finding(
        level="no-go" if derails else "change",
        name="rejected off-policy",
        text=f"the rejected answers are {_gap(rejected)} below the base's own replies: to push down what it does not "
        f"say anyway teaches nothing{', and derails DPO' if derails else ''}",
        advice="let the base write them (`persona ask v1 PROMPT --temperature 1`), or do without: `--method sft`",
    )


def check_lengths(measures: Measures, method: Method) -> Iterator[Finding]:
    """Whether one side is so much longer that length is what is learnt."""
    ratio = measures.length_ratio()
    if ratio is None or method == "sft":
        return
    # Whichever way it goes: e.g. 0.25 is as far off as 4.
    times = max(ratio.value, 1 / ratio.value)
    if times < _LENGTHS:
        return
    longer = "longer" if ratio.value > 1 else "shorter"
    summed = "dpo" in phases_of(method)  # DPO compares sums over tokens, ORPO means
    yield Finding(
        level="no-go" if summed and times >= _DPO_LENGTHS else "change",
        name="length",
        text=f"chosen answers are {times:.1f} times {longer} than rejected ones "
        f"(ratio {ratio.value:.2f}, {ratio.low:.2f} to {ratio.high:.2f}): length is what is easiest to learn from them",
        advice="bring both sides to similar lengths"
        + (
            ", or use `--method orpo`, which compares means over tokens"
            if summed
            else "; `--method sft` looks at one side only"
        ),
    )


def _gap(figure: Figure) -> str:
    return f"{figure.value:.2f} nats/token ({figure.low:.2f} to {figure.high:.2f})"
