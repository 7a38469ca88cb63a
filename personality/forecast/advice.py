"""What a forecast warns of, and the nearest recipe of which it would not: only where a figure supports it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from personality.forecast.figures import OPPOSED, Pair
from personality.forecast.forecast import Forecast
from personality.manifests.personality_record import Composition, Personality
from personality.vectors.steering.steering_vector import listed

STRAINED = 1.4
"""Strain from which on general ability fell; chosen and tested on the playground, see docs/check.md."""

KEPT = 0.65
"""Least share of a vector that should be kept; chosen and tested as the strain."""

AGAINST = 0.3
"""Cosine of a steering direction against a task vector's shift, or another direction, from which on they oppose."""

ALIGNED = 0.5
"""Cosine of two vectors from which on each is a dose of the other: two trainings of one behavior on the playground have
0.75, its behaviors among each other 0.1 at most."""

Kind = Literal["strain", "lost", "opposed", "aligned", "steering"]

_STEP = 0.05  # to which scales are rounded


@dataclass(frozen=True)
class Caution:
    """One thing that a forecast warns of.

    Attributes:
        kind: `strain` (abilities), `lost` (a behavior), `opposed` and `aligned` (a pair), `steering`.
        text: what, with its figures.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Advice:
    """Another recipe, of which the forecast is better.

    Attributes:
        personality: the recipe.
        text: how to get there, and its figures.
    """

    personality: Personality
    text: str

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        recipe = [str(use) for use in self.personality.uses]
        return {"text": self.text, "recipe": recipe, "composition": self.personality.composition.as_json()}


def cautions(found: Forecast) -> list[Caution]:
    """Everything that a forecast warns of, what concerns the whole first."""
    result = []
    if found.strain >= STRAINED:
        text = f"the sum is {found.strain:.2f}× the longest vector at scale 1: general ability is at risk"
        result.append(Caution("strain", text))
    result += [
        Caution("lost", f"only {use.kept:.0%} of `{use.label}` is kept: at scale {use.scale:g} it acts as at {at}")
        for use in sorted(found.uses, key=lambda use: use.kept)
        if use.kept < KEPT
        for at in [f"{use.effective:.2g}"]
    ]
    result += [Caution("opposed", _opposed(pair)) for pair in found.pairs if _fights(pair)]
    result += [Caution("aligned", _aligned(found, pair)) for pair in found.pairs if (pair.whole.cosine or 0) >= ALIGNED]
    for item in found.directions:
        if item.cosine <= -AGAINST:
            text = f"the directions of `{item.first}` and `{item.second}` oppose each other in layer {item.layer}"
            result.append(Caution("steering", f"{text} (cosine {item.cosine:+.2f})"))
    for shift in found.against:
        limit = max(AGAINST, shift.chance)
        taken = shift.mode == "project" and abs(shift.cosine) >= limit
        if taken or (shift.mode != "project" and shift.cosine <= -limit):
            does = "takes out what" if taken else "pushes against what"
            text = f"`{shift.steering}` {does} `{shift.task}` does to the activations after layer {shift.layer}"
            result.append(Caution("steering", f"{text} (cosine {shift.cosine:+.2f})"))
    return result


def advise(found: Forecast, forecast: Callable[[Personality], Forecast]) -> Advice | None:
    """The first of a few near recipes whose forecast warns neither of strain nor of a lost vector.

    In this order: TIES without a division, TIES at density 0.1 and 0.2, `linear`; then each of them and the recipe as
    it is with all scales lowered together, which lowers the strain in proportion.

    Args:
        found: the forecast of the recipe as it is.
        forecast: of another one.

    Returns:
        None where nothing is to be mended so, or none of these mends it.
    """
    if found.strain < STRAINED and all(use.kept >= KEPT for use in found.uses):
        return None
    tried = [found]
    for composition in _others(found.personality.composition):
        tried.append(forecast(found.personality.model_copy(update={"composition": composition})))
        if _mended(tried[-1], 1.0):
            return _advice(found, tried[-1], 1.0)
    for item in tried:
        factor = math.floor(STRAINED / max(item.strain, STRAINED) / _STEP) * _STEP
        if factor > 0 and _mended(item, factor):
            return _advice(found, item, factor)
    return None


def _others(now: Composition) -> list[Composition]:
    plain = {"normalize": "sum", "lam": 1.0}
    found = [now.model_copy(update=plain)] if now.method == "ties" else []
    found += [now.model_copy(update={"method": "ties", "density": density, **plain}) for density in (0.1, 0.2)]
    found.append(now.model_copy(update={"method": "linear"}))
    return [item for item in dict.fromkeys(found) if item.effective() != now.effective()]


def _mended(item: Forecast, factor: float) -> bool:
    """Whether lowering all scales so leaves nothing to warn of; what is kept of a vector does not depend on that."""
    return item.strain * factor < STRAINED and all(use.kept >= KEPT for use in item.uses)


def _advice(found: Forecast, better: Forecast, factor: float) -> Advice:
    steps = []
    composition = better.personality.composition
    if composition.effective() != found.personality.composition.effective():
        density = f" --density {composition.density:g}" if composition.method == "ties" else ""
        division = " --normalize sum --lambda 1" if _divides(found.personality.composition, composition) else ""
        steps.append(f"`persona method {composition.method}{density}{division}`")
    uses = better.personality.uses
    if factor != 1:
        steered = {use.label for use in uses} - {use.label for use in found.uses}
        uses = tuple(
            use if use.label in steered else use.model_copy(update={"scale": round(use.scale * factor, 3)})
            for use in uses
        )
        steps.append(f"scales × {factor:.2g}")
    least = min(use.kept for use in better.uses)
    strain = f"the sum would be {better.strain * factor:.2f}× the longest vector"
    text = f"{' and '.join(steps)}: {strain}, and {least:.0%} or more of each would be kept"
    return Advice(better.personality.model_copy(update={"uses": uses}), text)


def _divides(now: Composition, then: Composition) -> bool:
    return then.method == "ties" and (now.normalize != "sum" or now.lam != 1)


def _fights(pair: Pair) -> bool:
    return pair.whole.cosine is not None and pair.whole.cosine <= OPPOSED


def _opposed(pair: Pair) -> str:
    where = f" in layers {listed(tuple(pair.fights))}" if pair.fights else ""
    figures = [f"cosine {pair.whole.cosine:+.2f}"]
    if pair.whole.opposed is not None:
        figures.append(f"opposite signs in {pair.whole.opposed:.0%} of what they share")
    return f"`{pair.first}` and `{pair.second}` oppose each other{where} ({', '.join(figures)})"


def _aligned(found: Forecast, pair: Pair) -> str:
    acts = {use.label: f"`{use.label}` acts as at {use.effective:.2g}" for use in found.uses}
    return (
        f"`{pair.first}` and `{pair.second}` point the same way (cosine {pair.whole.cosine:+.2f}): "
        f"{acts[pair.first]}, {acts[pair.second]}"
    )


def cautions_json(found: list[Caution]) -> list[dict[str, str]]:
    """Plain JSON data."""
    return [asdict(item) for item in found]
