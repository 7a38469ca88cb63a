"""Judging a recipe that was found by search, on rows that the search never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personality.evaluation.goals import Goal
from personality.evaluation.intervals import paired_share_difference
from personality.evaluation.workbench import Workbench
from personality.manifests.evaluation import Figure
from personality.manifests.personality_record import Personality
from personality.manifests.study import HeldOut, Trial
from personality.searching.constraint import Constraint
from personality.searching.retention import smallest_change, values_of, yardsticks


@dataclass(frozen=True)
class Halves:
    """Two workbenches with one model: rows for the search, and rows that are held out."""

    search: Workbench
    held_out: Workbench


def compare(
    bench: Workbench,
    before: Personality,
    after: Personality,
    goals: Sequence[Goal],
    constraints: Sequence[Constraint],
    limited: dict[str, Goal],
) -> HeldOut:
    """The recipe that was found against the recipe as it was.

    It is better when it keeps every constraint, and either the smallest retention is shown to be higher, or the recipe
    as it was breaks a constraint and the difference there is shown.

    Args:
        bench: with the rows that are held out.
        before: the recipe as it was.
        after: the recipe that was found.
        goals: what was maximized.
        constraints: that it must keep.
        limited: their goals by name.
    """
    sticks = yardsticks(bench, goals, before)
    base = bench.measure(before.model_copy(update={"uses": ()}))
    old, new = bench.measure(before), bench.measure(after)
    values = values_of(sticks, old), values_of(sticks, new)
    change = smallest_change(sticks, *values)
    slack = [{str(c): c.slack(limited[c.goal], base, results) for c in constraints} for results in (old, new)]
    mended = []
    for item in constraints:
        goal = limited[item.goal]
        if slack[0][str(item)] < 0 <= slack[1][str(item)]:
            shift = paired_share_difference(goal.outcomes(old), goal.outcomes(new))
            if shift.low > 0 or shift.high < 0:
                mended.append(str(item))
    broken = [name for name, value in slack[1].items() if value < 0]
    beats, reason = _verdict(before.id == after.id, change, broken, mended)
    before_after = [min(stick.retention(rows) for stick, rows in zip(sticks, half, strict=True)) for half in values]
    return HeldOut(
        before=before_after[0],
        after=before_after[1],
        change=change,
        goals={goal.name: goal.change(old, new) for goal in goals},
        slack_before=slack[0],
        slack_after=slack[1],
        beats=beats,
        reason=reason,
    )


def _verdict(same: bool, change: Figure, broken: Sequence[str], mended: Sequence[str]) -> tuple[bool, str]:
    if same:
        return False, "the search found nothing better than the recipe as it was"
    if broken:
        return False, f"on held-out rows it breaks {', '.join(broken)}"
    if change.low > 0:
        return True, "it keeps more of the effect of which least is left"
    if mended:
        return True, f"it keeps {', '.join(mended)}, which the recipe as it was breaks"
    return False, "no difference shown on held-out rows"


def front_of(trials: Sequence[Trial]) -> list[Trial]:
    """The same trials, with those on the Pareto front marked: they keep all constraints, and no other trial that does
    is at least as good in every goal and better in one.
    """
    kept = [trial for trial in trials if trial.feasible]

    def dominated(trial: Trial) -> bool:
        for other in kept:
            no_worse = all(other.values[name] >= value for name, value in trial.values.items())
            better = any(other.values[name] > value for name, value in trial.values.items())
            if no_worse and better:
                return True
        return False

    return [trial.model_copy(update={"front": trial.feasible and not dominated(trial)}) for trial in trials]
