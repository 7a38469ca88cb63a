"""What one `persona extract` is asked to do."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from personality.manifests.personality_record import LayerRange
from personality.manifests.record import Frozen
from personality.manifests.steering_record import Mode, Positions
from personality.vectors.extraction.directions import Method
from personality.vectors.extraction.formats import Format
from personality.vectors.extraction.reading import Read

Context = Literal["answers", "shots", "system"]
"""In what the two sides of a pair differ: the reply; earlier turns that show the behavior or not; a system turn that
calls for it or not."""


class Source(Frozen):
    """A task vector that a direction is derived from: composed minus base, on the same texts."""

    vector: str
    label: str


class ExtractionJob(Frozen):
    """An extraction, from pairs to a proven and calibrated vector.

    Attributes:
        behavior: its name.
        pairs: file of pairs.
        form: of that file; None to see for itself.
        side: which triplets: those that show the behavior (and those that name no side), or all.
        examples: use so many pairs; None for all.
        prompts: file of contrastive system prompts, for the context `system` and as the prompt to compare with.
        general: JSONL of general examples, by which the scale is calibrated; None for the pairs' own texts.
        source: derive the direction from this task vector instead of a contrast.
        context, read: None to try what suits the pairs.
        shots: earlier turns on each side.
        method, denoise: see `extract_directions`.
        mode: how the vector acts.
        positions, layers: None to search (with `auto`), or to take the usual ones.
        auto: search contexts, positions, layers and scale on the behavior's probes.
        when, unless: JSONL of prompts on which to act, and on which not: makes the vector conditional.
        max_length: most tokens of a text; None for what the base can take.
        held_out: share of the pairs that only test.
        placebos: random directions to compare with.
        probe_rows: rows of each probe; None for all.
        prove: measure what it does, against placebos and a prompt.
        seed: of every draw.
    """

    behavior: str
    pairs: Path
    form: Format | None = None
    side: Literal["accept", "push_back", "both"] = "accept"
    examples: int | None = Field(default=None, ge=1)
    prompts: Path | None = None
    general: Path | None = None
    source: Source | None = None
    context: Context | None = None
    read: Read | None = None
    shots: int = Field(default=2, ge=1)
    method: Method = "mean"
    denoise: int | None = Field(default=None, ge=1)
    mode: Mode = "add"
    positions: Positions | None = None
    layers: LayerRange | None = None
    auto: bool = True
    when: Path | None = None
    unless: Path | None = None
    max_length: int | None = Field(default=None, ge=2)
    held_out: float = 0.25
    placebos: int = Field(default=5, ge=0)
    probe_rows: int | None = Field(default=40, ge=2)
    prove: bool = True
    seed: int = 0
