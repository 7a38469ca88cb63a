"""Whether there is enough data, of all kinds that a run needs, and whether its settings fit the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from personality.preflight.findings import Finding, Level
from personality.preflight.similarity import said
from personality.preflight.style import telling_word
from personality.vectors.training.batches import general_needed
from personality.vectors.training.examples import Example, count_sides
from personality.vectors.training.presets import default_learning_rate, phases_of
from personality.vectors.training.settings import TrainSettings

_LEAST, _SOME, _ROBUST = 10, 50, 200
_MINORITY = 0.15
_GENERAL_SHARE = 0.15
_ONE_WAY = 0.9
_RATE_CHANGE, _RATE_NO_GO = 5.0, 30.0


def check_count(examples: Sequence[Example]) -> Iterator[Finding]:
    """Whether there are enough examples."""
    count = len(examples)
    if count < _LEAST:
        yield Finding(
            level="change",
            name="few examples",
            text=f"{count} examples: too few to move a default without learning them by heart",
            advice=f"write at least {_LEAST}; {_SOME} are better, {_ROBUST} are robust",
        )
    elif count < _SOME:
        yield Finding(
            level="note",
            name="few examples",
            text=f"{count} examples can shift a default; it takes about {_ROBUST} to make it robust",
            advice="check the result with probes of other phrasing",
        )


def check_sides(examples: Sequence[Example]) -> Iterator[Finding]:
    """Whether the examples show both when to accept and when to push back."""
    sides = count_sides(examples)
    accept, push_back, unlabeled = sides["accept"], sides["push_back"], sides["unlabeled"]
    labeled = accept + push_back
    if not labeled:
        yield from _check_direction(examples)
        return
    if unlabeled:
        yield Finding(
            level="note",
            name="unlabeled examples",
            text=f"{unlabeled} of {len(examples)} examples have no `side`",
            advice='mark them with "side": "accept" or "push_back"',
        )
    minority = min(accept, push_back) / labeled
    if minority >= _MINORITY:
        return
    fewer, danger = (
        ("push_back", "one-sided data makes sycophants, which accept what they should refuse")
        if push_back < accept
        else ("accept", "one-sided data makes models that push back on everything")
    )
    yield Finding(
        level="change",
        name="one-sided",
        text=f"{accept} examples accept and {push_back} push back: {danger}",
        advice=f'add examples with "side": "{fewer}" until they are 15% to 40%',
    )


def _check_direction(examples: Sequence[Example]) -> Iterator[Finding]:
    """What can be told about sides without labels: whether some pairs point the other way."""
    pairs = [(said(item.chosen), said(item.rejected)) for item in examples if item.rejected is not None]
    word, share = telling_word([a for a, _ in pairs], [b for _, b in pairs]) if pairs else ("", 0.0)
    if len(pairs) >= _LEAST and share >= _ONE_WAY:
        yield Finding(
            level="change",
            name="one-sided",
            text=f"no example has a `side`, and `{word}` alone tells chosen from rejected answers in {share:.0%} of "
            f"{len(pairs)} pairs: none shows where the behavior ends",
            advice="if it is a judgment (when to admit, when to refuse), add about 30% pairs that point the other way, "
            "or it will be done everywhere, as by a sycophant; if it is meant everywhere, ignore this",
        )
        return
    yield Finding(
        level="note",
        name="unlabeled examples",
        text=f"none of the {len(examples)} examples says whether it accepts or pushes back",
        advice='if the behavior is a judgment, mark them with "side": "accept" or "push_back"',
    )


def check_general(examples: Sequence[Example], general: Sequence[Example], ratio: float) -> Iterator[Finding]:
    """Whether there is enough general data against forgetting."""
    needed = general_needed(len(examples), ratio)
    share = needed / (needed + len(examples))
    if not general or not needed:
        yield Finding(
            level="change",
            name="no general data",
            text="training on one behavior alone makes a model forget the rest",
            advice="give `--general FILE` with about a quarter as many examples, and leave `--general-ratio` at 0.25",
        )
    elif len(general) < needed:
        yield Finding(
            level="change",
            name="too little general data",
            text=f"{len(examples)} examples need {needed} general ones at ratio {ratio:g}, there are {len(general)}",
            advice=f"add {needed - len(general)} to the file given with `--general`; training refuses to begin without",
        )
    elif share < _GENERAL_SHARE:
        yield Finding(
            level="change",
            name="too little general data",
            text=f"general examples are {share:.0%} of each batch",
            advice="`--general-ratio 0.25`",
        )


def check_too_long(lengths: Sequence[int], where: Sequence[str], limit: int) -> Iterator[Finding]:
    """Whether training would refuse dialogues for their length.

    Args:
        lengths: tokens of each example's longer dialogue.
        where: what to call them.
        limit: tokens that a dialogue may have.
    """
    over = [row for row, length in enumerate(lengths) if length > limit]
    if over:
        shown = ", ".join(f"{where[row]} ({lengths[row]})" for row in over[:3])
        yield Finding(
            level="change",
            name="too long",
            text=f"{len(over)} of {len(lengths)} dialogues have more than {limit} tokens, and training cuts nothing: "
            f"{shown}{', …' if len(over) > 3 else ''}",
            advice=f"shorten them, or `--max-length {max(lengths)}`",
        )


def check_rates(settings: TrainSettings, parameters: int) -> Iterator[Finding]:
    """Whether the learning rates fit the objective and the base's size.

    Args:
        settings: of the run.
        parameters: number of the base's parameters.
    """
    for objective in phases_of(settings.method):
        usual = default_learning_rate(objective, parameters, lora=settings.lora_rank is not None)
        rate = settings.rate_of(objective, parameters)
        times = max(rate / usual, usual / rate)
        if times <= _RATE_CHANGE:
            continue
        high = rate > usual
        level: Level = "no-go" if times > _RATE_NO_GO else "change"
        option = "--dpo-lr" if settings.method == "sft-dpo" and objective == "dpo" else "--lr"
        yield Finding(
            level=level,
            name="learning rate",
            text=f"{rate:g} is {times:.3g} times {'above' if high else 'below'} the preset of {objective} for "
            f"{parameters / 1e6:.3g}M parameters ({usual:g}): "
            f"{'the model may collapse' if high else 'little will move'}",
            advice=f"`{option} {usual:g}`, or the line under [training] in persona.toml",
        )
