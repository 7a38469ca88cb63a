"""What a search has tried, and with what result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from personality.evaluation.measure import passes
from personality.evaluation.suite import Probe
from personality.manifests.steering_record import Mode, Positions
from personality.proving.candidates import SIMPLEST, Candidate, Setting, Source, effort, varied
from personality.proving.general_text import GeneralText
from personality.proving.quick_figures import QuickFigure, QuickFigures
from personality.proving.roles import Roles, score
from personality.vectors.extraction.base_predictions import BasePredictions
from personality.vectors.extraction.iso_kl import calibrate_layer, joint_factor
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection, injections
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.training.tokens import pad_id

_EACH = 4  # finalists that each kind of positions has, whatever the others do
_QUICK_ROWS, _QUICK_GENERAL = 12, 6  # of each probe
_BLIND_ROWS = 6  # of a probe without replies and openings
_TOKENS = 256
UNSURE = 0.1
"""What a setting must be better by if its direction does not tell the texts apart that it was read from: it would
hardly do so with held-out ones, and not be proven."""

_COLLAPSE = 0.3  # fall of the score after which no larger scale is looked at


class Trials:
    """Settings, calibrated, and quick figures of what was tried.

    Args:
        model, tokenizer, sources, general, mode: see `search`.
        probes: 12 rows of each are looked at, 6 of general ones.
        parts: what the probes are there for.

    Attributes:
        sources: by name.
        evaluations: how often anything was put through the model: divergences, quick figures, rounds of replies.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        probes: Sequence[Probe],
        parts: Roles,
        sources: Sequence[Source],
        general: GeneralText,
        mode: Mode,
    ) -> None:
        self._model, self._tokenizer, self._mode = model, tokenizer, mode
        self._parts = parts
        self._general = general
        few = [probe.first(_QUICK_GENERAL if probe.name in parts.general else _QUICK_ROWS) for probe in probes]
        self._quick = QuickFigures(model, tokenizer, few)
        # What a forward pass cannot see, a few replies must show.
        unseen = [probe for probe in few if probe.name in parts.wanted and probe.name not in self._quick.base]
        self._unseen = [probe.first(_BLIND_ROWS) for probe in unseen]
        self._unseen_base = self._replied()
        self._bases: dict[Positions, BasePredictions] = {}
        self._alone: dict[tuple[str, Positions, int], Tensor] = {}
        self._vectors: dict[Setting, SteeringVector] = {}
        self._tried: dict[Candidate, float] = {}
        self.sources = {source.name: source for source in sources}
        self.evaluations = 0

    def try_setting(self, source: Source, place: Positions, layers: tuple[int, ...], scales: Sequence[float]) -> None:
        """Calibrate one setting and look at it at some scales."""
        if (source.name, place, layers) not in self._vectors:
            self._vectors[source.name, place, layers] = self._calibrated(source, place, layers)
        best = -1.0
        for scale in sorted(scales):
            candidate = Candidate(source.name, place, layers, scale)
            if candidate not in self._tried:
                self._tried[candidate] = self._quick_score(self.acting(candidate)) - self.doubt(candidate)
            best = max(best, self._tried[candidate])
            if self._tried[candidate] < best - _COLLAPSE:
                return

    def doubt(self, candidate: Candidate) -> float:
        """What goes off a candidate's score because its direction does not tell texts apart."""
        return 0.0 if self.sources[candidate.source].separates(candidate.layers) else UNSURE

    def vector(self, candidate: Candidate) -> SteeringVector:
        """A candidate's vector."""
        return self._vectors[candidate.source, candidate.positions, candidate.layers]

    def acting(self, candidate: Candidate) -> tuple[Injection, ...]:
        """A candidate at its scale."""
        return injections(self.vector(candidate), candidate.scale)

    def ranked(self) -> list[Candidate]:
        """What was tried, best first."""
        return sorted(self._tried, key=lambda candidate: (-self._tried[candidate], effort(candidate)))

    def finalists(self, count: int) -> list[tuple[Candidate, float]]:
        """The best few of each kind of positions, then the best of all; see `varied`."""
        found: list[Candidate] = []
        ranked = self.ranked()
        for place in SIMPLEST:
            own = [candidate for candidate in ranked if candidate.positions == place]
            found += varied(own, _EACH)
        found += [candidate for candidate in varied(ranked, 2 * count) if candidate not in found]
        return [(candidate, self._tried[candidate]) for candidate in found[:count]]

    def passing(self, candidate: Candidate, probes: Sequence[Probe]) -> dict[str, list[bool]]:
        """Greedy replies under a candidate."""
        self.evaluations += 1
        with steered(self._model, self.acting(candidate)):
            return passes(self._model, self._tokenizer, probes)

    def _calibrated(self, source: Source, place: Positions, layers: tuple[int, ...]) -> SteeringVector:
        base = self._base(place)
        for layer in layers:
            if (source.name, place, layer) not in self._alone:
                direction, activation = source.directions[layer], float(source.activations[layer])
                found = calibrate_layer(self._model, base, layer, direction, place, self._mode, activation=activation)
                self.evaluations += found.evaluations
                self._alone[source.name, place, layer] = direction / direction.norm() * found.at
        tensors = {layer: self._alone[source.name, place, layer] for layer in layers}
        vector = SteeringVector(tensors, place, self._mode, layers)
        if len(layers) == 1:
            return vector
        joint = joint_factor(self._model, base, vector)
        self.evaluations += joint.evaluations
        return SteeringVector(tensors, place, self._mode, layers, joint.at)

    def _replied(self) -> dict[str, QuickFigure]:
        if not self._unseen:
            return {}
        found = {
            name: sum(rows) / len(rows) for name, rows in passes(self._model, self._tokenizer, self._unseen).items()
        }
        return {name: QuickFigure(value, value) for name, value in found.items()}

    def _base(self, place: Positions) -> BasePredictions:
        if place not in self._bases:
            self._bases[place] = BasePredictions(
                self._model, self._general.texts, place, pad_id=pad_id(self._tokenizer), most_tokens=_TOKENS
            )
        return self._bases[place]

    def _quick_score(self, acting: Sequence[Injection]) -> float:
        self.evaluations += 1
        figures, base = self._quick.measure(acting), self._quick.base | self._unseen_base
        with steered(self._model, acting):
            figures |= self._replied()
        known = Roles(
            tuple(name for name in self._parts.wanted if name in figures),
            tuple(name for name in self._parts.held if name in figures),
            tuple(name for name in self._parts.general if name in figures),
        )
        # What is wanted moves as a probability long before it shows; what must stay matters only once it is lost.
        soft = score(
            {name: (figure.probability + figure.share) / 2 for name, figure in figures.items()},
            {name: (figure.probability + figure.share) / 2 for name, figure in base.items()},
            Roles(known.wanted, (), ()),
        )
        hard = score(
            {name: figure.share for name, figure in figures.items()},
            {name: figure.share for name, figure in base.items()},
            Roles((), known.held, known.general),
        )
        return soft + hard
