"""A direction of the playground's base with what is needed to prove it, made once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from personality.evaluation.suite import Probe, Row, Turn
from personality.manifests.evaluation import Figure
from personality.model import load_model, load_tokenizer
from personality.playground.behaviors import examples, general
from personality.playground.dialogue import CUES, NEUTRAL
from personality.playground.probes import probes
from personality.playground.repository import base_folder
from personality.proving.general_text import GeneralText, encode_general
from personality.proving.proof import share_of
from personality.vectors.extraction.contexts import with_system
from personality.vectors.extraction.directions import Extraction, extract_directions
from personality.vectors.extraction.passages import Pair, Passage, on_side
from personality.vectors.extraction.reading import read_pairs
from personality.vectors.extraction.separation import measure_separation
from personality.vectors.training.examples import parse_example

ROWS = 8


@dataclass(frozen=True)
class Workbench:
    """The base, and `listening` read where replies part, a cue against none."""

    model: Any
    tokenizer: Any
    general: GeneralText
    probes: list[Probe]
    pairs: list[Pair]
    extraction: Extraction
    separation: dict[int, Figure]

    @property
    def directions(self) -> dict[int, Tensor]:
        return dict(enumerate(self.extraction.directions))

    @property
    def activations(self) -> dict[int, float]:
        return {layer: float(norm) for layer, norm in enumerate(self.extraction.activation_norm)}


def playground_probes(behavior: str, rows: int = ROWS) -> list[Probe]:
    """The behavior's and two general probes, as a repository has them."""
    chosen = [probe for probe in probes(rows) if probe.behavior in (behavior, "")]
    return [_probe(probe) for probe in chosen if probe.name not in ("general.sums", "general.small_talk")]


def _probe(probe: Any) -> Probe:
    def turns(messages: list[dict[str, str]]) -> tuple[Turn, ...]:
        return tuple(Turn(**message) for message in messages)

    rows = tuple(
        Row(
            prompt=turns(row["prompt"]),
            passes=row["pass"],
            chosen=turns(row["chosen"]),
            rejected=turns(row["rejected"]),
        )
        for row in probe.rows
    )
    return Probe(probe.name, probe.side, rows, probe.yes, probe.no)


@pytest.fixture(scope="session")
def bench() -> Workbench:
    model, tokenizer = load_model(base_folder()), load_tokenizer(base_folder())
    texts = [parse_example(row, where="general", need_rejected=False) for row in general(40, 0)]
    rows = [
        parse_example(row, where=f"row {n}", need_rejected=True) for n, row in enumerate(examples("listening", 90, 0))
    ]
    pairs = on_side(
        [Pair(Passage(row.prompt, row.chosen), Passage(row.prompt, row.rejected), row.side, row.where) for row in rows]
    )
    read, _ = read_pairs(tokenizer, with_system(pairs, CUES["listening"], NEUTRAL), "divergence", max_length=1024)
    extraction = extract_directions(model, read[16:])
    separation = measure_separation(model, read[:16], extraction)
    figures = {layer: share_of(int(separation.correct[layer]), separation.texts) for layer in range(4)}
    return Workbench(
        model,
        tokenizer,
        encode_general(tokenizer, texts),
        playground_probes("listening"),
        pairs,
        extraction,
        figures,
    )
