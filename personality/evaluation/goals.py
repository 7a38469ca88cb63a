"""Goals: what several probes say together, by a name that people use, such as `listening`, `push_back` or `general`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from personality.evaluation.intervals import mean, paired_difference, paired_share_difference, share
from personality.evaluation.suite import Probe
from personality.manifests.errors import UsageError
from personality.manifests.evaluation import Figure, ProbeResult

PUSH_BACK = "push_back"
GENERAL = "general"


@dataclass(frozen=True)
class Goal:
    """A name and the probes that it is the mean of; every row counts the same.

    Attributes:
        name: `general` (all abilities), `push_back` (every behavior's wrong directions), a behavior (what it is for:
            its probes without the push-back side), or one probe, `listening.accept`.
        probes: their names.
    """

    name: str
    probes: tuple[str, ...]

    def outcomes(self, results: Sequence[ProbeResult]) -> list[bool]:
        """Whether each row's greedy reply passes, row by row in order of the probes."""
        found = {result.probe: result for result in results}
        return [outcome for name in self.probes for outcome in found[name].outcomes]

    def values(self, results: Sequence[ProbeResult]) -> list[float]:
        """Continuous where all of its probes are: the probability of the wanted opening, row by row; else 0 or 1."""
        found = {result.probe: result for result in results}
        if self._continuous(results):
            return [value for name in self.probes for value in found[name].probabilities]
        return [float(outcome) for outcome in self.outcomes(results)]

    def _continuous(self, results: Sequence[ProbeResult]) -> bool:
        found = {result.probe: result for result in results}
        return all(found[name].probabilities for name in self.probes)

    def passed(self, results: Sequence[ProbeResult]) -> Figure:
        """Share of passing replies, 0 to 1 (Wilson interval)."""
        return share(self.outcomes(results))

    def value(self, results: Sequence[ProbeResult]) -> Figure:
        """Mean of `values`, 0 to 1 (bootstrap interval; Wilson's where they are replies that pass or not)."""
        return mean(self.values(results)) if self._continuous(results) else self.passed(results)

    def change(self, before: Sequence[ProbeResult], after: Sequence[ProbeResult]) -> Figure:
        """Paired difference of `values`, after − before (bootstrap interval; Newcombe's where they are replies)."""
        if not (self._continuous(before) and self._continuous(after)):
            return paired_share_difference(self.outcomes(before), self.outcomes(after))
        return paired_difference(self.values(before), self.values(after))


def goals_of(probes: Sequence[Probe]) -> dict[str, Goal]:
    """Every goal that a suite has, by name."""
    found: dict[str, list[str]] = {}
    for probe in probes:
        behavior = probe.name.partition(".")[0]
        found.setdefault(probe.name, []).append(probe.name)
        if probe.side == PUSH_BACK:
            found.setdefault(PUSH_BACK, []).append(probe.name)
        else:
            found.setdefault(behavior, []).append(probe.name)
    return {name: Goal(name, tuple(members)) for name, members in found.items()}


def find_goal(goals: dict[str, Goal], name: str) -> Goal:
    """A goal by its name.

    Raises:
        UsageError: when there is none, with those that are near.
    """
    if name in goals:
        return goals[name]
    near = get_close_matches(name, goals, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    raise UsageError(f"there is nothing to measure called `{name}`", f"{hint}there are: {', '.join(sorted(goals))}")
