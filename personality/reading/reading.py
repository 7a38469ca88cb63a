"""What reading a text on vectors' directions gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from personality.manifests.steering_record import Positions


@dataclass(frozen=True)
class Turn:
    """Where a turn of a transcript is among the tokens that were read.

    Attributes:
        number: of the message, from 0.
        role, content: of the message.
        start, stop: of its tokens. Those of the template count to the turn that they come with: the header of a reply
            to the turn before it.
    """

    number: int
    role: str
    content: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class VectorReading:
    """A text on one vector.

    Raw projections grow with the activations, whose length differs tenfold between layers and positions; the cosine is
    the projection divided by that length, and what is compared. Zero is no mark of neutrality: the mean of all
    activations has a part along any direction. So compare tokens, turns and versions with each other.

    Attributes:
        label: such as `candid@1`.
        layers: l layers that were read.
        acting: those in which it acts unless a use says otherwise; may be empty.
        positions: where it acts.
        cosines: float64 (T, l), of the activation after each layer with the vector's direction there.
        projections: float64 (T, l), on the unit direction, in the units of the activations.
        decisions: by the number of a reply's turn, float64 (l,): cosines at the last token before the reply.
    """

    label: str
    layers: tuple[int, ...]
    acting: tuple[int, ...]
    positions: Positions
    cosines: Tensor
    projections: Tensor
    decisions: dict[int, Tensor]

    @property
    def shown(self) -> tuple[int, ...]:
        """Layers that one figure is the mean of: those in which the vector acts, or else all that were read."""
        return self.acting or self.layers

    def mean(self, turn: Turn) -> float:
        """Mean cosine over a turn's tokens and the layers `shown`."""
        return float(self.cosines[turn.start : turn.stop, self._columns].mean())

    def decision(self, turn: Turn) -> float | None:
        """Cosine at the token at which a reply is decided, mean over the layers `shown`; None for other turns."""
        found = self.decisions.get(turn.number)
        return None if found is None else float(found[self._columns].mean())

    def figure(self, turn: Turn) -> float | None:
        """The one of the two that fits the vector: `decision` for one that acts there, `mean` for all others."""
        return self.decision(turn) if self.positions == "decision" else self.mean(turn)

    @property
    def _columns(self) -> list[int]:
        return [self.layers.index(layer) for layer in self.shown]


@dataclass(frozen=True)
class Reading:
    """A text on several vectors.

    Attributes:
        tokens: T of them, as people can read them.
        ids: of the tokens.
        turns: of a transcript; empty for a plain text.
        vectors: one reading each.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    vectors: tuple[VectorReading, ...]

    def drift(self, vector: VectorReading) -> float | None:
        """A vector's figure of the last reply minus that of the first; None with fewer than two replies."""
        found = [vector.figure(turn) for turn in self.turns if turn.role == "assistant"]
        figures = [figure for figure in found if figure is not None]
        return figures[-1] - figures[0] if len(figures) > 1 else None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "tokens": [{"id": token, "text": text} for token, text in zip(self.ids, self.tokens, strict=True)],
            "turns": [
                {
                    "turn": turn.number + 1,
                    "role": turn.role,
                    "start": turn.start,
                    "stop": turn.stop,
                    "means": {item.label: _rounded(item.mean(turn)) for item in self.vectors},
                    "decisions": {item.label: _rounded(item.decision(turn)) for item in self.vectors},
                }
                for turn in self.turns
            ],
            "vectors": [
                {
                    "vector": item.label,
                    "layers": list(item.layers),
                    "acting": list(item.acting),
                    "positions": item.positions,
                    "cosines": [[_rounded(x) for x in row] for row in item.cosines.tolist()],
                    "projections": [[_rounded(x) for x in row] for row in item.projections.tolist()],
                    "drift": _rounded(self.drift(item)),
                }
                for item in self.vectors
            ],
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
