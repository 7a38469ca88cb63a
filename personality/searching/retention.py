"""Retention: how much of the effect that a vector has alone is left in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personality.evaluation.goals import Goal
from personality.evaluation.workbench import Workbench
from personality.manifests.errors import DataError
from personality.manifests.evaluation import Figure, ProbeResult
from personality.manifests.personality_record import Composition, Personality

_LEAST_EFFECT = 0.05
_RESAMPLES = 2000

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Yardstick:
    """What counts as nothing and as everything for one goal, row by row.

    Attributes:
        goal: a behavior, or anything else.
        base: its values at the base, float64 (rows,); zeros where no vector in use is for it.
        solo: its values with its vector alone at scale 1; ones where no vector in use is for it.
    """

    goal: Goal
    base: Rows
    solo: Rows

    def retention(self, values: Rows) -> float:
        """(value − base) / (solo − base), of means over rows."""
        return float((values.mean() - self.base.mean()) / (self.solo.mean() - self.base.mean()))


def yardsticks(bench: Workbench, goals: Sequence[Goal], personality: Personality) -> list[Yardstick]:
    """Measure base and vectors alone.

    Args:
        bench: with probes of all goals.
        goals: what is to be retained.
        personality: whose vectors; each is measured at scale 1, or −1 where it is subtracted, in its use's layers.

    Raises:
        DataError: when a vector alone moves its goal by less than 5 points, so that nothing can be retained.
    """
    base = bench.measure(personality.model_copy(update={"uses": ()}))
    found = []
    for goal in goals:
        use = personality.use_of(goal.name.partition(".")[0])
        if use is None or use.scale == 0:
            count = len(goal.values(base))
            found.append(Yardstick(goal, np.zeros(count), np.ones(count)))
            continue
        alone = use.model_copy(update={"scale": 1.0 if use.scale > 0 else -1.0, "density": None})
        solo = bench.measure(personality.model_copy(update={"uses": (alone,), "composition": Composition()}))
        item = Yardstick(goal, np.array(goal.values(base)), np.array(goal.values(solo)))
        if item.solo.mean() - item.base.mean() < _LEAST_EFFECT:
            raise DataError(
                f"`{use.label}` alone moves `{goal.name}` from {item.base.mean():.0%} to {item.solo.mean():.0%}: there "
                "is no effect to keep",
                f"maximize something else, or train it on more examples: `persona train {use.behavior} …`",
            )
        found.append(item)
    return found


def smallest_change(sticks: Sequence[Yardstick], before: Sequence[Rows], after: Sequence[Rows]) -> Figure:
    """Difference of the smallest retention of all goals, after − before, with a 95% bootstrap interval.

    Rows are resampled within each goal, the same for base, solo, before and after, so that the comparison is paired.

    Args:
        sticks: one a goal.
        before, after: values of each goal, float64 (rows,).
    """
    generator = np.random.default_rng(0)
    smallest = [np.full(_RESAMPLES, np.inf), np.full(_RESAMPLES, np.inf)]
    for stick, *both in zip(sticks, before, after, strict=True):
        rows = len(stick.base)
        weights = generator.multinomial(rows, [1 / rows] * rows, size=_RESAMPLES) / rows
        zero = weights @ stick.base
        span = np.maximum(weights @ stick.solo - zero, _LEAST_EFFECT)
        for place, values in enumerate(both):
            smallest[place] = np.minimum(smallest[place], (weights @ values - zero) / span)
    low, high = (float(limit) for limit in np.percentile(smallest[1] - smallest[0], [2.5, 97.5]))
    value = min(stick.retention(rows) for stick, rows in zip(sticks, after, strict=True)) - min(
        stick.retention(rows) for stick, rows in zip(sticks, before, strict=True)
    )
    n = sum(len(stick.base) for stick in sticks)
    return Figure(value=value, low=min(low, value), high=max(high, value), n=n)


def values_of(sticks: Sequence[Yardstick], results: Sequence[ProbeResult]) -> list[Rows]:
    """Values of each goal, float64 (rows,)."""
    return [np.array(stick.goal.values(results)) for stick in sticks]
