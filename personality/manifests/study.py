"""A study: the search by which a version's scales and method were found."""

from __future__ import annotations

from typing import ClassVar

from personality.manifests.evaluation import Figure
from personality.manifests.personality_record import Composition
from personality.manifests.record import Frozen, Record


class Trial(Frozen):
    """One recipe that was tried, measured on the rows that are for the search.

    Attributes:
        number: 0 for the recipe as it was.
        composition: its method and density.
        scales: by behavior.
        values: of what is maximized, 0 to 1, by goal.
        retention: of the effect that each goal's vector has alone at scale 1: 1 for all of it, 0 for none.
        slack: by constraint, how far it is kept, as a share; negative where it is broken.
        front: whether no other recipe that keeps the constraints is better in one goal and as good in all.
    """

    number: int
    composition: Composition
    scales: dict[str, float]
    values: dict[str, float]
    retention: dict[str, float]
    slack: dict[str, float]
    front: bool = False

    @property
    def smallest(self) -> float:
        """Smallest retention of all goals."""
        return min(self.retention.values())

    @property
    def feasible(self) -> bool:
        """Whether it keeps every constraint."""
        return all(slack >= 0 for slack in self.slack.values())


class HeldOut(Frozen):
    """The chosen recipe against the recipe as it was, on rows that the search never saw.

    Attributes:
        before, after: smallest retention.
        change: their difference, paired by row (bootstrap interval).
        goals: paired change of each goal that was maximized.
        slack_before, slack_after: by constraint.
        beats: whether the chosen recipe is shown to be better.
        reason: why, or why not.
    """

    before: float
    after: float
    change: Figure
    goals: dict[str, Figure]
    slack_before: dict[str, float]
    slack_after: dict[str, float]
    beats: bool
    reason: str


class Study(Record):
    """A search for a recipe; its file is `studies/<version-id>.json`, beside the version that took the recipe.

    Attributes:
        version: id of the version that took the chosen recipe.
        tuned: id of the version that was tuned.
        maximize: goals.
        subject_to: constraints as typed.
        seed: of the search and of the division of rows.
        suites: digests of the rows that were for the search, and of those held out.
        tools: versions of the optimizer.
        trials: every recipe that was tried and did not fall apart.
        chosen: number of the trial that was taken.
        held_out: how it did on held-out rows.
    """

    noun: ClassVar[str] = "study"

    version: str
    tuned: str
    maximize: tuple[str, ...]
    subject_to: tuple[str, ...]
    seed: int
    suites: tuple[str, str]
    tools: dict[str, str]
    trials: tuple[Trial, ...]
    chosen: int
    held_out: HeldOut
