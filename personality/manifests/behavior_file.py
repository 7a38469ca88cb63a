"""`behaviors/<name>.toml`: a behavior's description, its probes and, while in use, the vector, scale and layers."""

from __future__ import annotations

from typing import Any, Literal, Self

import tomlkit
from pydantic import Field, field_validator

from personality.manifests.errors import PersonaError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import LayerRange, Use
from personality.manifests.record import Frozen
from personality.manifests.scorer_entry import ScorerEntry
from personality.manifests.toml_text import parse_toml, set_table, validate


class UseEntry(Frozen):
    """The `[use]` table: which vector, how strongly, where. `vector` is a label such as `listening@3`."""

    vector: str
    scale: float
    layers: str | None = None
    density: float | None = Field(default=None, gt=0, le=1)

    @field_validator("layers")
    @classmethod
    def _readable(cls, layers: str | None) -> str | None:
        try:
            return None if layers is None else str(LayerRange.parse(layers))
        except PersonaError as error:
            raise ValueError(error.message) from error

    @field_validator("vector")
    @classmethod
    def _numbered(cls, vector: str) -> str:
        try:
            label = VectorLabel.parse(vector)
        except PersonaError as error:
            raise ValueError(error.message) from error
        if label.number is None:
            raise ValueError(f"`{vector}` needs a number, such as `{vector}@1`")
        return str(label)


class ProbeEntry(Frozen):
    """One `[[probes]]` table: how a behavior is measured.

    Attributes:
        name: within the behavior, such as `accept`.
        file: JSONL beside the TOML file; a row has `prompt`, `pass` (a regular expression on the reply) and,
            optionally, `chosen` and `rejected`.
        side: `accept` or `push_back` for behaviors that are a judgment.
        yes, no: openings of replies; P(yes) / (P(yes) + P(no)) is the probability that is shown.
        scorer: how replies are scored where it is not by each row's `pass`.
        samples: replies that are sampled for each row, beside the greedy one.
        temperature, seed: of the sampling.
        asked: what to say to bring the displaced habit back; it comes when the reply then fails.
        asked_as: whether that is the system turn, or is added to the user's words.
    """

    name: str
    file: str
    side: Literal["accept", "push_back"] | None = None
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()
    scorer: ScorerEntry | None = None
    samples: int = Field(default=0, ge=0, le=1000)
    temperature: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    asked: str = ""
    asked_as: Literal["system", "suffix"] = "system"


class BehaviorFile(Frozen):
    """What `behaviors/<name>.toml` says."""

    description: str = ""
    use: UseEntry | None = None
    probes: tuple[ProbeEntry, ...] = ()

    @classmethod
    def from_text(cls, text: str, source: str) -> Self:
        """Read the file's text.

        Raises:
            CorruptError: when it cannot be read, naming the file and the field.
        """
        return validate(cls, parse_toml(text, source), source)


def with_use(text: str | None, use: Use, label: str = "") -> str:
    """The file's text with this use; description, probes and comments stay.

    Args:
        text: the file's text; None for a new file.
        use: what to write.
        label: how to name its vector when `use.label` alone means two, as in `listening@3:ab12`.
    """
    document = tomlkit.parse(text) if text else tomlkit.document()
    entry: dict[str, Any] = {"vector": label or use.label, "scale": use.scale}
    if use.layers is not None:
        entry["layers"] = str(use.layers)
    if use.density is not None:
        entry["density"] = use.density
    set_table(document, "use", entry)
    return tomlkit.dumps(document)


def without_use(text: str) -> str | None:
    """The file's text without its use; None when nothing else is in it."""
    document = tomlkit.parse(text)
    document.pop("use", None)
    rest = tomlkit.dumps(document)
    return rest if rest.strip() else None
