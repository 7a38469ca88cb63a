"""Searching the contrast, positions, layers and scale that serve a behavior best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from personality.evaluation.measure import passes
from personality.evaluation.suite import Probe
from personality.manifests.errors import DataError
from personality.manifests.steering_record import Mode, Positions
from personality.proving.candidates import SIMPLEST, Candidate, Source, effort, neighbors, setting, spread_layers
from personality.proving.general_text import GeneralText
from personality.proving.roles import roles, score
from personality.proving.trials import Trials
from personality.vectors.steering.steering_vector import SteeringVector

SCALES = (0.35, 0.5, 0.55, 0.6, 0.65, 0.7, 0.85, 1.0, 1.5, 2.0, 3.0)

CLOSE = 0.02
"""Scores within two points count alike; then the simplest wins."""

_FINALISTS = 12
_GREEDY_ROWS = 24
_COARSE = slice(1, None, 3)  # of the scales: what is looked at first
_FINE = 12  # best settings that are looked at at every scale
_SETS = 4  # best single settings whose neighbors are tried as pairs

OnStep = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: the winner.
        by_positions: the best finalist of each kind of positions, by which to see what the others would have cost.
        scores: of these, on the rows that they were chosen on.
        vector: the winner, calibrated on a part of the general text; calibrate it again for good.
        rows: what the finalists did, best first, for the manifest.
        evaluations: forward evaluations of all kinds.
    """

    best: Candidate
    by_positions: dict[Positions, Candidate]
    scores: dict[Positions, float]
    vector: SteeringVector
    rows: tuple[dict[str, Any], ...]
    evaluations: int


def search(
    model: Any,
    tokenizer: Any,
    behavior: str,
    probes: Sequence[Probe],
    sources: Sequence[Source],
    general: GeneralText,
    *,
    mode: Mode = "add",
    positions: Sequence[Positions] = SIMPLEST,
    layers: Sequence[int] | None = None,
    scales: Sequence[float] = SCALES,
    on_step: OnStep | None = None,
) -> Found:
    """Choose where and how strongly directions act, by half of the probes' rows.

    Every source, position and layer is calibrated and looked at by teacher forcing at a few scales; then pairs of
    neighboring layers around the best; the best dozen at every scale. Greedy replies decide between the twelve best,
    four of each kind of positions among them. The score is what the wanted probes gain on average, less what the other
    side of a judgment loses, less what general ability loses beyond two points, less ten points for a direction that
    does not tell texts apart. Of scores within two points the simplest wins: what acts everywhere, in fewer
    layers; then what has the wanted decisions safest. Nothing is drawn at random.

    Args:
        model: the base, unsteered, in evaluation mode.
        tokenizer: its tokenizer.
        behavior: whose probes are wanted.
        probes: its own and general ones.
        sources: directions to choose from.
        general: to calibrate on.
        mode: how they act.
        positions: to choose from.
        layers: to choose from; None for all, in deep models the 12 of the greatest merit that lie apart.
        scales: to choose from.
        on_step: called before each step with its number, the number of steps, and what it is.

    Raises:
        DataError: without probes that the behavior should raise, or without directions.
    """
    chosen, _ = halves(probes)
    base = _shares(passes(model, tokenizer, chosen))
    sorted_roles = roles(behavior, chosen, base)
    if not sorted_roles.wanted:
        raise DataError(
            f"no probe of `{behavior}` leaves anything to gain, so there is nothing to search by",
            f"add [[probes]] to behaviors/{behavior}.toml, or name `--positions` and `--layers` yourself",
        )
    trials = Trials(model, tokenizer, chosen, sorted_roles, sources, general, mode)
    settings: list[tuple[Source, Positions, tuple[int, ...]]] = [
        (source, place, (layer,))
        for source in sources
        for place in positions
        for layer in spread_layers(source, layers)
    ]
    if not settings:
        raise DataError(
            "there is no direction to search with: in none of the layers anything differs", "look at the pairs again"
        )
    coarse = scales[_COARSE] or scales
    for number, (source, place, where) in enumerate(settings):
        if on_step:
            on_step(number, len(settings) + _FINALISTS, f"{source.name}, {place}, layer {where[0]}")
        trials.try_setting(source, place, where, coarse)
    for source, place, where in neighbors(trials.ranked(), sources, _SETS, layers):
        trials.try_setting(source, place, where, coarse)
    for source_name, place, where in list(dict.fromkeys(setting(item) for item in trials.ranked()))[:_FINE]:
        trials.try_setting(trials.sources[source_name], place, where, scales)
    rows = []
    for number, (candidate, quick) in enumerate(trials.finalists(_FINALISTS)):
        if on_step:
            on_step(len(settings) + number, len(settings) + _FINALISTS, f"replies: {candidate.source}")
        shares = _shares(trials.passing(candidate, chosen))
        value = score(shares, base, sorted_roles) - trials.doubt(candidate)
        rows.append(_Row(candidate, quick, value, shares))
    rows.sort(key=lambda row: (-row.score, effort(row.candidate)))
    near = [row for row in rows if row.score >= rows[0].score - CLOSE]
    winner = min(near, key=lambda row: (effort(row.candidate)[:2], -row.quick, row.candidate.scale))
    rows.sort(key=lambda row: row is not winner)
    best_of = {row.candidate.positions: row for row in reversed(rows)}
    return Found(
        best=winner.candidate,
        by_positions={place: row.candidate for place, row in best_of.items()},
        scores={place: row.score for place, row in best_of.items()},
        vector=trials.vector(winner.candidate),
        rows=tuple(row.as_json() for row in rows),
        evaluations=trials.evaluations,
    )


def halves(probes: Sequence[Probe]) -> tuple[list[Probe], list[Probe]]:
    """Every other row of each probe to choose by, at most 24; and the others, by which nothing is chosen, so that they
    can prove what was found. A probe of one row serves both.
    """

    def part(probe: Probe, start: int) -> Probe:
        rows = probe.rows[start::2] or probe.rows
        return replace(probe, rows=rows[:_GREEDY_ROWS] if start == 0 else rows)

    return [part(probe, 0) for probe in probes], [part(probe, 1) for probe in probes]


@dataclass(frozen=True)
class _Row:
    candidate: Candidate
    quick: float
    score: float
    shares: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return {
            "contrast": self.candidate.source,
            "positions": self.candidate.positions,
            "layers": list(self.candidate.layers),
            "scale": self.candidate.scale,
            "score": round(self.score, 4),
            "quick": round(self.quick, 4),
            "probes": {name: round(value, 4) for name, value in self.shares.items()},
        }


def _shares(passing: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    return {name: sum(rows) / len(rows) for name, rows in passing.items()}
