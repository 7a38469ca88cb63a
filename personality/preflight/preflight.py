"""The whole of a preflight: data, base and settings, a verdict. Nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from personality.evaluation.intervals import mean
from personality.evaluation.suite import Probe
from personality.manifests.errors import DataError
from personality.manifests.evaluation import Figure
from personality.model import threads_for
from personality.preflight.amount_checks import check_count, check_general, check_rates, check_sides, check_too_long
from personality.preflight.base_checks import check_bias, check_lengths, check_policy
from personality.preflight.findings import Finding, Preflight, conclude
from personality.preflight.measures import Dialogue, Measures, measure_base
from personality.preflight.similarity import said
from personality.preflight.style import common_opening, compare_styles
from personality.preflight.text_checks import check_texts
from personality.vectors.training.examples import Example, count_sides
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.tokens import ANY_LENGTH, encode

_STYLE_GAP = 0.8  # from here on a standardized difference is called large (Cohen 1988)


def run_preflight(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    general: Sequence[Example],
    settings: TrainSettings,
    *,
    probes: Sequence[Probe] = (),
    seed: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> Preflight:
    """Look at data, base and settings before training.

    Args:
        model: the base, a causal language model of transformers in evaluation mode; it is not changed.
        tokenizer: its tokenizer.
        examples: of the behavior, at least one.
        general: general examples; may be empty.
        settings: of the run to come.
        probes: held-out ones that the examples must not repeat.
        seed: of sampling and draws.
        on_stage: told what is being done.

    Returns:
        Verdict, findings and figures.

    Raises:
        DataError: examples that cannot be tokenized at all (no chat template, say), or none within
            `settings.max_length`.
        PersonaError: the base's predictions are not finite.
    """
    told = on_stage or (lambda stage: None)
    told("comparing the texts")
    dialogues = [_dialogue(tokenizer, item, f"example {row}") for row, item in enumerate(examples, start=1)]
    lengths = [_length(dialogue) for dialogue in dialogues]
    places = [item.where or f"example {row}" for row, item in enumerate(examples, start=1)]
    findings = [
        *check_count(examples),
        *check_sides(examples),
        *check_general(examples, general, settings.general_ratio),
        *check_too_long(lengths, places, settings.max_length),
        *check_texts(examples, general, probes),
    ]
    fitting = [item for item, length in zip(dialogues, lengths, strict=True) if length <= settings.max_length]
    if not fitting:
        raise DataError(
            f"none of {len(examples)} dialogues has at most {settings.max_length} tokens",
            f"shorten them, or raise the limit with `--max-length {max(lengths, default=settings.max_length)}`",
        )
    told("asking the base")
    with threads_for(model):
        measures = measure_base(model, tokenizer, fitting, seed=seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    figures = _figures(measures) | _style(examples)
    findings += [
        *check_bias(measures, settings.method),
        *check_policy(measures, settings.method),
        *check_lengths(measures, settings.method),
        *_check_style(figures.get("style", {})),
        *check_rates(settings, parameters),
    ]
    figures |= {
        "examples": len(examples),
        "general": len(general),
        "sides": count_sides(examples),
        "parameters": parameters,
        "longest": max(lengths),
    }
    return conclude(findings, figures)


def _dialogue(tokenizer: Any, example: Example, name: str) -> Dialogue:
    where = example.where or name
    chosen = encode(tokenizer, example.prompt, example.chosen, ANY_LENGTH, where=where)
    rejected = None
    if example.rejected is not None:
        rejected = encode(tokenizer, example.prompt, example.rejected, ANY_LENGTH, where=where)
    return Dialogue(example, chosen, rejected)


def _length(dialogue: Dialogue) -> int:
    return max(len(text.ids) for text in (dialogue.chosen, dialogue.rejected) if text is not None)


def _figures(measures: Measures) -> dict[str, Any]:
    """Every estimate of the measures under a name; those that need pairs only where there are any."""
    rejected = [scores for scores in measures.rejected if scores is not None]
    estimates: dict[str, Figure | None] = {
        "chosen": mean([float(scores.mean()) for scores in measures.chosen]),
        "rejected": mean([float(scores.mean()) for scores in rejected]) if rejected else None,
        "own": mean([float(scores.mean()) for scores in measures.own]),
        "chosen_gap": measures.chosen_gap(),
        "rejected_gap": measures.rejected_gap(),
        "length_ratio": measures.length_ratio(),
    }
    for side, ending in ((None, ""), ("accept", "_accept"), ("push_back", "_push_back")):
        margins = measures.margins(side)
        estimates[f"margin{ending}"] = mean(margins) if margins else None
        estimates[f"prefers_rejected{ending}"] = measures.prefers_rejected(side)
    figures: dict[str, Any] = {name: figure.as_json() for name, figure in estimates.items() if figure is not None}
    return _rounded(figures | {"surprises": asdict(measures.surprises())})


def _style(examples: Sequence[Example]) -> dict[str, Any]:
    pairs = [(said(item.chosen), said(item.rejected)) for item in examples if item.rejected is not None]
    if not pairs:
        return {}
    chosen, rejected = [a for a, _ in pairs], [b for _, b in pairs]
    openings = {"chosen": common_opening(chosen), "rejected": common_opening(rejected)}
    return _rounded({"style": compare_styles(chosen, rejected), "openings": openings})


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """The same nested figures with four decimals: they are kept in manifests, for people to read."""
    found = {}
    for name, value in figures.items():
        inner = _rounded(value) if isinstance(value, dict) else value
        found[name] = round(inner, 4) if isinstance(inner, float) else inner
    return found


def _check_style(style: dict[str, dict[str, float]]) -> list[Finding]:
    """The largest differences in style, as a note: they may be what the behavior is."""
    large = sorted(
        (item for item in style.items() if abs(item[1]["gap"]) >= _STYLE_GAP), key=lambda item: -abs(item[1]["gap"])
    )
    if not large:
        return []
    told = "; ".join(f"{name} {item['chosen']:.2g} to {item['rejected']:.2g}" for name, item in large[:3])
    return [
        Finding(
            level="note",
            name="style",
            text=f"chosen and rejected answers differ in style: {told}",
            advice="where that is not the behavior itself, even it out: training learns the easiest difference",
        )
    ]
