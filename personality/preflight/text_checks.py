"""What the texts say about each other: near-duplicates, contradictions, leaks into the probes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from personality.evaluation.suite import Probe
from personality.preflight.findings import Finding, Level
from personality.preflight.similarity import NEAR, Shingles, jaccard, near_pairs, said, setting_of, shingles, words
from personality.vectors.training.examples import Example

_SHOWN = 3
_MANY = 0.02  # share of the examples from which repetition asks for a change
_BROKEN = 0.05  # share of contradicted examples from which there is no direction to learn

Pairs = list[tuple[int, int]]


def near_duplicates(examples: Sequence[Example]) -> Pairs:
    """Examples whose prompt and chosen answer nearly repeat an earlier one's, each with that one."""
    texts = [shingles(f"{said(item.prompt)}\n{said(item.chosen)}") for item in examples]
    return list(near_pairs(texts, texts, lambda late, early: early < late and _same_setting(examples, late, early)))


def contradictions(examples: Sequence[Example], general: Sequence[Example]) -> tuple[Pairs, Pairs, Pairs]:
    """Examples that ask for opposite things.

    Returns:
        Examples whose rejected answer is near what another chooses for nearly the same prompt; examples whose rejected
        answer is near that of a general example for nearly the same prompt; and examples with the prompt of an earlier
        one and the opposite side. Sides are compared on equal prompts only: near prompts with opposite sides are good
        contrasts.
    """
    rows = [row for row, item in enumerate(examples) if item.rejected is not None]
    rejected = [_Exchange(item, said(item.rejected)) for item in examples if item.rejected is not None]
    among = _near_exchanges(rejected, [_Exchange(item, said(item.chosen)) for item in examples])
    against_general = _near_exchanges(rejected, [_Exchange(item, said(item.chosen)) for item in general])
    first: dict[tuple[str, ...], int] = {}
    sides = []
    for row, item in enumerate(examples):
        if item.side is not None:
            early = first.setdefault((setting_of(item.prompt), *(words(said(item.prompt)) or [said(item.prompt)])), row)
            if examples[early].side != item.side:
                sides.append((row, early))
    return (
        [(rows[one], other) for one, other in among],
        [(rows[one], other) for one, other in against_general],
        sides,
    )


def check_texts(examples: Sequence[Example], general: Sequence[Example], probes: Sequence[Probe]) -> Iterator[Finding]:
    """Findings from the texts alone."""
    yield from _check_repetition(examples, general)
    yield from _check_contradictions(examples, general)
    yield from _check_leaks(examples, probes)


def _check_repetition(examples: Sequence[Example], general: Sequence[Example]) -> Iterator[Finding]:
    pairs = near_duplicates(examples)
    if pairs:
        yield Finding(
            level=_level(len(pairs), len(examples)),
            name="near-duplicates",
            text=f"{len(pairs)} of {len(examples)} examples nearly repeat an earlier one: "
            f"{_name(pairs, examples, examples)}",
            advice="remove or rewrite them; they count like a second pass over the same example",
        )
    ours = [_Exchange(item, said(item.chosen)) for item in examples]
    shared = _near_exchanges(ours, [_Exchange(item, said(item.chosen)) for item in general])
    if shared:
        yield Finding(
            level=_level(len(shared), len(examples)),
            name="general data repeats it",
            text=f"{len(shared)} of {len(examples)} examples are in the general data too: "
            f"{_name(shared, examples, general)}",
            advice="take other general examples: general data is what the behavior's own data does not show",
        )


def _check_contradictions(examples: Sequence[Example], general: Sequence[Example]) -> Iterator[Finding]:
    among, against_general, sides = contradictions(examples, general)
    for pairs, others, name, what in (
        (among, examples, "contradictory pairs", "reject what another chooses for the same or nearly the same prompt"),
        (
            against_general,
            general,
            "general data contradicts it",
            "reject what the general data teaches for the same prompt",
        ),
        (sides, examples, "contradictory sides", "have the prompt of another with the opposite `side`"),
    ):
        if pairs:
            level: Level = "no-go" if len(pairs) >= _BROKEN * len(examples) else "change"
            yield Finding(
                level=level,
                name=name,
                text=f"{len(pairs)} of {len(examples)} examples {what}: {_name(pairs, examples, others)}",
                advice="decide what is wanted and mend or remove the other lines: opposite lessons cancel out",
            )


def _check_leaks(examples: Sequence[Example], probes: Sequence[Probe]) -> Iterator[Finding]:
    rows = [(probe.name, number, row) for probe in probes for number, row in enumerate(probe.rows, start=1)]
    asked = [shingles("\n".join(turn.content for turn in row.prompt if turn.role != "system")) for _, _, row in rows]
    leaks = list(near_pairs([shingles(said(item.prompt)) for item in examples], asked))
    if leaks:
        shown = [f"{_place(examples, late)} and row {rows[row][1]} of {rows[row][0]}" for late, row in leaks[:_SHOWN]]
        yield Finding(
            level="change",
            name="probes not held out",
            text=f"{len(leaks)} of {len(examples)} prompts are nearly those of probes: {_listed(shown, len(leaks))}",
            advice="remove these examples, or those rows of the probes: else measures after training show memory",
        )


class _Exchange:
    """A prompt and an answer as sets of shingles, alone and together (told apart by a mark)."""

    def __init__(self, example: Example, answer: str) -> None:
        self.setting = setting_of(example.prompt)
        self.prompt, self.answer = shingles(said(example.prompt)), shingles(answer)
        self.both: Shingles = frozenset(
            {("prompt", *run) for run in self.prompt} | {("answer", *run) for run in self.answer}
        )
        self.example = example


def _near_exchanges(queries: Sequence[_Exchange], rows: Sequence[_Exchange]) -> Pairs:
    """Pairs of different examples near in both prompt and answer, under the same system turns.

    If both parts have a similarity of t or more, so have the two together (a mediant lies between its parts); so the
    search goes by these, and the parts are compared afterwards.
    """

    def keep(query: int, row: int) -> bool:
        ours, theirs = queries[query], rows[row]
        return (
            ours.example is not theirs.example
            and ours.setting == theirs.setting
            and jaccard(ours.prompt, theirs.prompt) >= NEAR
            and jaccard(ours.answer, theirs.answer) >= NEAR
        )

    return list(near_pairs([item.both for item in queries], [item.both for item in rows], keep))


def _same_setting(examples: Sequence[Example], first: int, second: int) -> bool:
    return setting_of(examples[first].prompt) == setting_of(examples[second].prompt)


def _level(count: int, total: int) -> Level:
    return "change" if count >= _MANY * total else "note"


def _name(pairs: Pairs, ours: Sequence[Example], theirs: Sequence[Example]) -> str:
    return _listed([f"{_place(ours, one)} and {_place(theirs, other)}" for one, other in pairs[:_SHOWN]], len(pairs))


def _place(examples: Sequence[Example], row: int) -> str:
    """`file:line` without its folder, or the number of the example."""
    return re.sub(r".*[/\\]", "", examples[row].where) or f"example {row + 1}"


def _listed(shown: list[str], count: int) -> str:
    more = f"; and {count - len(shown)} more" if count > len(shown) else ""
    return "; ".join(shown) + more
