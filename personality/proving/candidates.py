"""Ways in which directions can be used: where, in which layers, how strongly."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from personality.manifests.steering_record import Positions

SIMPLEST: tuple[Positions, ...] = ("all", "response", "decision")
"""What acts everywhere can be baked into a checkpoint; what acts at replies needs to know where they begin, what acts
at the decision only must also stop."""

MOST_LAYERS = 12
_SCALES, _ALIKE = 2, 3

SEPARATES = 0.9
"""Share of texts that a direction must tell apart: of held-out ones to be proven, of those it was read from to be tried
without a doubt."""

Setting = tuple[str, Positions, tuple[int, ...]]
"""A source's name, positions and layers: a candidate without its scale."""


@dataclass(frozen=True)
class Source:
    """Directions from one contrast.

    Attributes:
        name: of the contrast, such as `shots/divergence`.
        directions: float32 (L, d), of norm 1, or 0 where nothing differs.
        activations: (L,), mean norm of the activations there.
        merit: (L,), by which layers are chosen in deep models: separation × consistency on the pairs that the
            directions were read from, so that the held-out ones stay fresh for the proof.
        separation: (L,), share of these texts on their side; None when nobody measured.
    """

    name: str
    directions: Tensor
    activations: Tensor
    merit: Tensor
    separation: Tensor | None = None

    def separates(self, layers: Sequence[int]) -> bool:
        """Whether the direction tells texts apart in all these layers, as far as anybody knows."""
        return self.separation is None or all(float(self.separation[layer]) >= SEPARATES for layer in layers)


@dataclass(frozen=True)
class Candidate:
    """One way to use a source; `scale` is in iso-KL units."""

    source: str
    positions: Positions
    layers: tuple[int, ...]
    scale: float


def effort(candidate: Candidate) -> tuple[Any, ...]:
    """What is simpler comes first."""
    place = SIMPLEST.index(candidate.positions)
    return place, len(candidate.layers), candidate.scale, candidate.source, candidate.layers


def setting(candidate: Candidate) -> Setting:
    """A candidate's setting."""
    return candidate.source, candidate.positions, candidate.layers


def varied(ranked: Iterable[Candidate], count: int) -> list[Candidate]:
    """The first few that differ: at most two scales of one setting, and three of the same positions and layers, since
    contrasts of one behavior often give nearly the same direction.
    """
    settings: dict[Setting, int] = {}
    places: dict[tuple[Positions, tuple[int, ...]], int] = {}
    found: list[Candidate] = []
    for candidate in ranked:
        own, place = setting(candidate), (candidate.positions, candidate.layers)
        if len(found) < count and settings.get(own, 0) < _SCALES and places.get(place, 0) < _ALIKE:
            settings[own] = settings.get(own, 0) + 1
            places[place] = places.get(place, 0) + 1
            found.append(candidate)
    return found


def spread_layers(source: Source, layers: Sequence[int] | None) -> list[int]:
    """Layers to try: all of a shallow model; of a deep one the best of each of 12 stretches of equal length."""
    usable = [
        layer
        for layer in (range(len(source.directions)) if layers is None else layers)
        if bool(source.directions[layer].any())
    ]
    if len(usable) <= MOST_LAYERS:
        return usable
    parts = [usable[len(usable) * i // MOST_LAYERS : len(usable) * (i + 1) // MOST_LAYERS] for i in range(MOST_LAYERS)]
    return [max(part, key=lambda layer: (float(source.merit[layer]), layer)) for part in parts]


def neighbors(
    ranked: Iterable[Candidate], sources: Sequence[Source], count: int, layers: Sequence[int] | None = None
) -> Iterator[tuple[Source, Positions, tuple[int, ...]]]:
    """The best settings' layers, each with its neighbor on either side."""
    known = {source.name: source for source in sources}
    settings = list(dict.fromkeys(setting(item) for item in ranked))[:count]
    seen: set[Setting] = set()
    for (name, place, alone), step in itertools.product(settings, (-1, 1)):
        source, other = known[name], alone[0] + step
        pair = (min(alone[0], other), max(alone[0], other))
        allowed = range(len(source.directions)) if layers is None else layers
        if other not in allowed or not bool(source.directions[other].any()):
            continue
        if (name, place, pair) not in seen:
            seen.add((name, place, pair))
            yield source, place, pair
