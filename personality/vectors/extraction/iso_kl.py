"""Iso-KL calibration: how far a steered model predicts from its base, and the coefficient that makes it 1 nat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from personality.manifests.steering_record import Mode, Positions
from personality.vectors.extraction.base_predictions import BasePredictions
from personality.vectors.steering.injection import Injection, injections
from personality.vectors.steering.steering_vector import SteeringVector

TARGET = 1.0
"""What scale 1 means: nats of KL(base ‖ steered) at the 95th percentile of the tokens."""

TOLERANCE = 0.02
"""Relative distance from the target at which a search ends."""

EVALUATIONS = 20
"""Most evaluations of one search."""

_START = 0.25  # of the activations' norm
_GROWTH = 2.0  # of the bracket, each step
_LITTLE, _MUCH = 0.25, 16.0  # of the target: where the way down ends, and where it is taken in longer steps
_FURTHEST = 64.0  # times the activations' norm: beyond it the direction is all that is left of a position
_NARROW = 1e-4  # relative width of a bracket in which a curve jumps over the target


@dataclass(frozen=True)
class Crossing:
    """Where a curve reaches its target.

    Attributes:
        at: the argument.
        value: of the curve there; clearly below the target when it is never reached.
        evaluations: that it took.
        target: that was looked for.
        tolerance: relative, in the value.
    """

    at: float
    value: float
    evaluations: int
    target: float = TARGET
    tolerance: float = TOLERANCE

    @property
    def reached(self) -> bool:
        """Whether the value is the target, within the tolerance."""
        return abs(self.value / self.target - 1) <= self.tolerance


def smallest_crossing(
    curve: Callable[[float], float],
    start: float,
    *,
    most: float,
    target: float = TARGET,
    tolerance: float = TOLERANCE,
    evaluations: int = EVALUATIONS,
) -> Crossing:
    """The smallest argument at which a curve reaches its target.

    From the first guess the search goes down until the curve is below a quarter of its target. From there a bracket
    grows by a factor of 2 until it holds the target, and is halved in the logarithm, the halving point drawn to where a
    straight line in log-log coordinates crosses (small shifts have a divergence proportional to their square, so that
    this line is nearly the curve). The curve need not rise everywhere: of several crossings that are more than a factor
    of 2 apart the smallest is found, unless the curve falls below a quarter of the target between them.

    Args:
        curve: from 0 at 0; may be infinite.
        start: a first guess > 0.
        most: greatest argument that makes sense.
        target: > 0.
        tolerance: relative, in the value.
        evaluations: most of them.

    Returns:
        The crossing; or `most` (or the best that was seen) with its value when the target is not reached.
    """
    seen: dict[float, float] = {}

    def look(at: float) -> float:
        if at not in seen:
            seen[at] = curve(at)
        return seen[at]

    low, high = _bracket(look, min(start, most), most, target, lambda: len(seen) < evaluations)
    if high is None and low >= most:
        return Crossing(low, seen[low], len(seen), target, tolerance)
    pull = False
    while high is not None and len(seen) < evaluations:
        best = min((low, high), key=lambda at: abs(_off(seen[at], target)))
        if abs(_off(seen[best], target)) <= tolerance or high / low - 1 < _NARROW:
            return Crossing(best, seen[best], len(seen), target, tolerance)
        middle = _between(low, high, seen, target, halve=pull)
        pull = not pull
        if look(middle) >= target:
            high = middle
        else:
            low = middle
    nearest = min(seen, key=lambda at: abs(_off(seen[at], target)))
    return Crossing(nearest, seen[nearest], len(seen), target, tolerance)


def _bracket(
    look: Callable[[float], float], start: float, most: float, target: float, more: Callable[[], bool]
) -> tuple[float, float | None]:
    """An argument `low` with a value below the target, and high above; None where nothing above was found."""
    low = start
    while look(low) >= _LITTLE * target and more():
        # Far too strong: a divergence falls with the square, so step as far as that says, not all at once. Steps are
        # powers of the growth, so that on the way up nothing is evaluated again.
        low /= _GROWTH**2 if look(low) >= _MUCH * target else _GROWTH
    while low < most and more():
        high = min(low * _GROWTH, most)
        if look(high) >= target:
            return low, high
        low = high
    return low, None


def _off(value: float, target: float) -> float:
    return value / target - 1 if math.isfinite(value) else math.inf


def _between(low: float, high: float, seen: Mapping[float, float], target: float, *, halve: bool) -> float:
    """A point strictly inside (low, high): on the line through both ends, or halfway, in logarithms."""
    share = 0.5
    below, above = seen[low], seen[high]
    if not halve and below > 0 and math.isfinite(above):
        share = math.log(target / below) / math.log(above / below)
    share = min(max(share, 0.05), 0.95)
    return low * math.exp(share * math.log(high / low))


def calibrate_layer(
    model: nn.Module,
    base: BasePredictions,
    layer: int,
    direction: Tensor,
    positions: Positions,
    mode: Mode,
    *,
    activation: float,
    start: float = _START,
) -> Crossing:
    """The coefficient of one layer's unit direction at which it alone has the strength that scale 1 means.

    Args:
        model: unsteered, in evaluation mode.
        base: its predictions, made for the same positions.
        layer: after which the direction acts.
        direction: float32 (d,), of any length > 0.
        positions, mode: see `Positions` and `Mode`.
        activation: mean norm of the activations there, the natural unit of a shift.
        start: a first guess in that unit; of no use to mode `project`.

    Returns:
        Where; in mode `project`, whose coefficient is a share, never above 1. A value below the target means that the
        mode cannot do more.
    """
    unit = direction / direction.norm()

    def curve(coefficient: float) -> float:
        return base.drift(model, [Injection(layer, unit * coefficient, positions, mode)]).kl_95

    if mode == "project":
        return smallest_crossing(curve, 1.0, most=1.0)
    return smallest_crossing(curve, start * activation, most=_FURTHEST * activation)


def calibrate_layers(
    model: nn.Module,
    base: BasePredictions,
    directions: Mapping[int, Tensor],
    positions: Positions,
    mode: Mode,
    *,
    activations: Mapping[int, float],
    on_layer: Callable[[int, int], None] | None = None,
) -> dict[int, Crossing]:
    """`calibrate_layer` for several layers, one by one, each search beginning where the last one ended, in units of the
    activations, since neighbors are alike; directions of length 0 are left out.

    Args:
        model, base, positions, mode: see there.
        directions: by layer.
        activations: mean norm by layer.
        on_layer: called after each layer with how many are done, of how many.
    """
    found = {}
    start = _START
    for number, (layer, direction) in enumerate(sorted(directions.items()), start=1):
        if bool(direction.any()):
            found[layer] = calibrate_layer(
                model, base, layer, direction, positions, mode, activation=activations[layer], start=start
            )
            if found[layer].reached:
                start = found[layer].at / activations[layer]
        if on_layer:
            on_layer(number, len(directions))
    return found


def joint_factor(model: nn.Module, base: BasePredictions, vector: SteeringVector) -> Crossing:
    """The factor that makes a vector's default layers together as strong as scale 1 means.

    Args:
        model, base: see `calibrate_layer`.
        vector: calibrated layer by layer; its own factor and its condition are not looked at.

    Returns:
        The factor, with what it reaches. In mode `project` no layer's share goes above 1.
    """
    plain = replace(vector, joint=1.0, gate=None)

    def curve(factor: float) -> float:
        return base.drift(model, injections(replace(plain, joint=factor), 1.0)).kl_95

    count = len(vector.layers)
    if vector.mode == "project":
        greatest = count / max(float(vector.tensors[layer].norm()) for layer in vector.layers)
        return smallest_crossing(curve, greatest, most=greatest)
    # Shifts that do not add up at all would need a factor of `count` each.
    return smallest_crossing(curve, 0.5, most=4.0 * count)
