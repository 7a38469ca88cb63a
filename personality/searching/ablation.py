"""`persona ablate`: which vector, or which of its layers, causes what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from personality.composition.opening import composer_of
from personality.evaluation.goals import GENERAL, PUSH_BACK, Goal, find_goal, goals_of
from personality.evaluation.intervals import mean, paired_difference
from personality.evaluation.suite import Probe, read_suite
from personality.manifests.errors import DataError
from personality.manifests.evaluation import Figure
from personality.manifests.personality_record import LayerRange, Personality
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.searching.bench import OnProbe, SharedBench
from personality.searching.players import PartialModel, Player, coalition, players_of
from personality.searching.shapley import Rows, shapley

SAMPLES = 24
"""Permutations, reverses included, where there are too many players for all coalitions."""

Effect = Literal["raises", "lowers", "no difference shown"]


@dataclass(frozen=True)
class Contribution:
    """What one player does to one goal.

    Attributes:
        player: a use, or its part in some layers.
        shapley: what it adds on average over all orders; the players' values add up to version − base.
        left_out: what the version loses without it: version − version without it, paired.
        sampling_error: standard error of `shapley` that comes from sampling permutations; 0 when exact.
    """

    player: Player
    shapley: Figure
    left_out: Figure
    sampling_error: float

    @property
    def effect(self) -> Effect:
        """By the interval of the Shapley value."""
        if not self.shapley.shows_change:
            return "no difference shown"
        return "raises" if self.shapley.value > 0 else "lowers"


@dataclass(frozen=True)
class Account:
    """One goal, and what every player does to it.

    Attributes:
        goal: what was measured.
        base, version: its value without and with all players, 0 to 1.
        change: version − base, paired.
        contributions: in order of the players.
    """

    goal: Goal
    base: Figure
    version: Figure
    change: Figure
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Ablation:
    """What a version was taken apart into.

    Attributes:
        players: uses, or parts of them.
        exact: whether all coalitions were measured.
        coalitions: how many were.
        accounts: one a goal.
    """

    players: tuple[Player, ...]
    exact: bool
    coalitions: int
    accounts: tuple[Account, ...]


def ablate(
    repository: Repository,
    version: Version,
    *,
    goals: Sequence[str] = (),
    ranges: Sequence[LayerRange] = (),
    samples: int = SAMPLES,
    seed: int = 0,
    rows: int | None = None,
    on_coalition: Callable[[int], None] | None = None,
    on_probe: OnProbe | None = None,
) -> Ablation:
    """Take a version apart: leave out every player, and share out among them what the version does.

    Args:
        repository: where; everything is composed in memory, and what was measured before is not measured again.
        version: what to take apart.
        goals: names; empty for the behaviors in use, `push_back` and `general`, as far as they have probes.
        ranges: layers; with them the players are the uses' parts in these layers, and what remains of each.
        samples: see `shapley`.
        seed: of the permutations.
        rows: at most so many rows of each probe.
        on_coalition: called before each composition with its number.
        on_probe: see `measure`.

    Raises:
        DataError: when the version uses nothing that acts, or there are no probes.
        UsageError: for a goal that does not exist; see `players_of`.
        IncompatibleError, NotFoundError, CorruptError: when the version cannot be composed.
    """
    personality = version.personality
    players = players_of(composer_of(repository, personality), personality, ranges)
    if not players:
        raise DataError(
            f"{version.label} uses no vector: there is nothing to take apart", "`persona add NAME` adds one"
        )
    wanted, probes = chosen_goals(read_suite(repository, rows=rows), goals, personality)
    bench = SharedBench(PartialModel(repository), probes, on_probe=on_probe)
    measured: dict[frozenset[int], Rows] = {}

    def value(present: frozenset[int]) -> Rows:
        if present not in measured:
            if on_coalition:
                on_coalition(len(measured))
            results = bench.measure(coalition(personality, players, present))
            measured[present] = np.concatenate([goal.values(results) for goal in wanted])
        return measured[present]

    found = shapley(len(players), value, samples=samples, seed=seed)
    everyone = frozenset(range(len(players)))
    accounts, start = [], 0
    for goal in wanted:
        stop = start + len(goal.values(bench.measure(personality)))
        part = slice(start, stop)
        whole, none = list(value(everyone)[part]), list(value(frozenset())[part])
        contributions = tuple(
            Contribution(
                player,
                found.figure(place, start, stop),
                paired_difference(list(value(everyone - {place})[part]), whole),
                found.sampling_error(place, start, stop),
            )
            for place, player in enumerate(players)
        )
        accounts.append(Account(goal, mean(none), mean(whole), paired_difference(none, whole), contributions))
        start = stop
    return Ablation(tuple(players), found.exact, len(measured), tuple(accounts))


def chosen_goals(
    probes: Sequence[Probe], names: Sequence[str], personality: Personality
) -> tuple[list[Goal], list[Probe]]:
    """Goals by name, and the probes that they need.

    Args:
        probes: of the repository.
        names: of goals; empty for the behaviors that the personality uses, `push_back` and `general`.
        personality: whose behaviors.

    Raises:
        UsageError: for a goal that does not exist.
    """
    known = goals_of(probes)
    usual = [*(use.behavior for use in personality.uses), PUSH_BACK, GENERAL]
    goals = [find_goal(known, name) for name in dict.fromkeys(names)] if names else []
    goals = goals or [known[name] for name in usual if name in known]
    needed = {name for goal in goals for name in goal.probes}
    return goals, [probe for probe in probes if probe.name in needed]
