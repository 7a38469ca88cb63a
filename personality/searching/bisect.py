"""`persona bisect`: the version that broke a probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from personality.changing_model import ChangingModel
from personality.evaluation.goals import Goal, find_goal, goals_of
from personality.evaluation.intervals import mean
from personality.evaluation.suite import Probe, read_suite
from personality.evaluation.workbench import Workbench
from personality.manifests.errors import (
    CorruptError,
    FallenApartError,
    IncompatibleError,
    NotFoundError,
    PersonaError,
    SchemaError,
    UsageError,
)
from personality.manifests.evaluation import Figure
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.searching.bench import OnProbe, SharedBench
from personality.searching.first_broken import ancestors, first_broken
from personality.versions.history import History
from personality.versions.recipe import RecipeChange, compare_recipes

FIRST_ROWS = 12
"""Rows of each probe to begin with. Where the interval holds the threshold they are doubled."""

_UNBUILDABLE = (NotFoundError, CorruptError, IncompatibleError, SchemaError)

Verdict = Literal["good", "broken", "skipped"]


@dataclass(frozen=True)
class Look:
    """What was seen of one version.

    Attributes:
        version: which.
        verdict: skipped when it cannot be composed.
        value: of what is measured, 0 to 1; None when skipped.
        above: how far it lies above the threshold, paired by row; None when skipped.
        rows: that were measured.
        reason: why it was skipped, or that the model has fallen apart (every row then counts 0); else empty.
    """

    version: Version
    verdict: Verdict
    value: Figure | None = None
    above: Figure | None = None
    rows: int = 0
    reason: str = ""

    @property
    def sure(self) -> bool:
        """Whether the interval leaves the threshold out; else the nearer side was taken."""
        return self.above is not None and (self.above.low > 0 or self.above.high < 0)


@dataclass(frozen=True)
class Bisection:
    """Which version broke what was measured.

    Attributes:
        goal: what was measured.
        threshold: below which it counts as broken, 0 to 1; None for the middle between the good and the bad version.
        looks: in the order in which they were taken, beginning with the good and the bad version.
        candidates: one version; or several where skipped ones lie between.
        changes: how each candidate's recipe differs from each of its parents, by candidate and parent.
    """

    goal: Goal
    threshold: float | None
    looks: tuple[Look, ...]
    candidates: tuple[Version, ...]
    changes: dict[tuple[str, str], list[RecipeChange]]

    @property
    def culprit(self) -> Version | None:
        """The version that broke it; None where that cannot be told."""
        return self.candidates[0] if len(self.candidates) == 1 else None


def bisect(
    repository: Repository,
    name: str,
    good: str,
    bad: str,
    *,
    threshold: float | None = None,
    first_rows: int = FIRST_ROWS,
    on_look: Callable[[Look], None] | None = None,
    on_probe: OnProbe | None = None,
) -> Bisection:
    """Find the first version between a good and a bad one at which something broke.

    Args:
        repository: where; versions are composed in memory, and what was measured before is not measured again.
        name: of a goal (`push_back`, `general`, `listening`) or of one probe (`listening.accept`).
        good, bad: names of versions.
        threshold: share from which it is good; None for the middle between the two versions' values, row by row.
        first_rows: rows of each probe to begin with.
        on_look: called with each look.
        on_probe: see `measure`.

    Raises:
        UsageError: for an unknown name, a threshold outside (0, 1), or when `good` is not an ancestor of `bad`.
        PersonaError: when `good` is not good, `bad` is not bad, or one of them cannot be composed.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise UsageError(f"the threshold is a share between 0 and 1, not {threshold:g}", "such as `--threshold 0.8`")
    history = History(repository)
    ends = history.find(good), history.find(bad)
    parents = {version.id: version.parents for version in history.versions.values()}
    _check_path(history, *ends, parents)
    probes = read_suite(repository)
    goal = find_goal(goals_of(probes), name)
    examination = _Examination(
        repository,
        goal,
        [probe for probe in probes if probe.name in goal.probes],
        ends,
        threshold,
        first_rows,
        on_probe,
    )
    looks = list(_check_ends(history, examination))
    for look in looks:
        if on_look:
            on_look(look)

    def broken(version_id: str) -> bool | None:
        look = examination.look(history.versions[version_id])
        looks.append(look)
        if on_look:
            on_look(look)
        return None if look.verdict == "skipped" else look.verdict == "broken"

    found = [history.versions[key] for key in first_broken(parents, ends[0].id, ends[1].id, broken)]
    changes = {
        (version.id, parent): compare_recipes(history.versions[parent].personality, version.personality)
        for version in found
        for parent in version.parents
    }
    return Bisection(goal, threshold, tuple(looks), tuple(found), changes)


def _check_path(history: History, good: Version, bad: Version, parents: dict[str, tuple[str, ...]]) -> None:
    names = history.label(good), history.label(bad)
    if good.id == bad.id:
        raise UsageError(f"the good and the bad version are the same, {names[0]}", "give two: `--good v2 --bad v9`")
    if good.id not in ancestors(parents, bad.id):
        if bad.id in ancestors(parents, good.id):
            raise UsageError(
                f"{names[0]} was made after {names[1]}: the good version must come first",
                f"to find what mended it, compare two versions: `persona diff {names[1]} {names[0]} --effect`",
            )
        raise UsageError(
            f"{names[1]} was not made from {names[0]}, so no path leads from the one to the other",
            "`persona log` shows what was made from what",
        )


def _check_ends(history: History, examination: _Examination) -> tuple[Look, Look]:
    """Looks at the good and the bad version, which must be what they are said to be."""
    for version in examination.ends:
        examination.check_end(history.label(version), version)
    good, bad = (examination.look(version) for version in examination.ends)
    assert good.value is not None and bad.value is not None
    goal, names = examination.goal.name, [history.label(look.version) for look in (good, bad)]
    if examination.threshold is not None:
        for look, wanted in ((good, "good"), (bad, "broken")):
            if look.verdict != wanted:
                assert look.value is not None
                side = "above" if wanted == "broken" else "below"
                raise PersonaError(
                    f"{history.label(look.version)} is not {wanted}: `{goal}` is {look.value.value:.0%} there, {side} "
                    f"the threshold of {examination.threshold:.0%}",
                    "choose other versions or another threshold: `persona eval VERSION` measures one",
                )
        return good, bad
    difference = examination.difference()
    if difference.value < 0:
        raise PersonaError(
            f"{names[0]} is not the good one: `{goal}` is {good.value.value:.0%} there and {bad.value.value:.0%} at "
            f"{names[1]}",
            "choose other versions: `persona eval VERSION` measures one",
        )
    if difference.low <= 0:
        raise PersonaError(
            f"no difference shown between {names[0]} and {names[1]}: `{goal}` is {good.value.value:.0%} and "
            f"{bad.value.value:.0%} on {difference.n} rows",
            "choose versions that differ, or give the probe more rows",
        )
    return good, bad


class _Examination:
    """Measures versions on as many rows as it takes to tell on which side of the threshold they are."""

    def __init__(
        self,
        repository: Repository,
        goal: Goal,
        probes: list[Probe],
        ends: tuple[Version, Version],
        threshold: float | None,
        first_rows: int,
        on_probe: OnProbe | None,
    ) -> None:
        self.goal, self.ends, self.threshold = goal, ends, threshold
        self._probes, self._on_probe = probes, on_probe
        self._model = ChangingModel(repository)
        most = max(len(probe.rows) for probe in probes)
        self._sizes = [first_rows * 2**step for step in range(most) if first_rows * 2**step < most] + [most]
        self._benches: dict[int, Workbench] = {}

    def look(self, version: Version) -> Look:
        """With more and more rows, until the interval leaves out the threshold or all were used."""
        look = Look(version, "skipped")
        for size in self._sizes:
            try:
                values, reason = self._values(version, size)
            except _UNBUILDABLE as error:
                return Look(version, "skipped", reason=error.message)
            distances = [value - limit for value, limit in zip(values, self._limits(size), strict=True)]
            above = mean(distances)
            look = Look(version, "good" if above.value >= 0 else "broken", mean(values), above, len(values), reason)
            if look.sure:
                break
        return look

    def check_end(self, label: str, version: Version) -> None:
        """The good or the bad version, which nothing can do without."""
        try:
            self._values(version, self._sizes[0])
        except _UNBUILDABLE as error:
            raise type(error)(
                f"{label} cannot be composed: {error.message}", "choose another version: `persona log` lists them"
            ) from error

    def difference(self) -> Figure:
        """Good − bad, paired, on as many rows as show one."""
        for size in self._sizes:
            good, bad = (self._values(version, size)[0] for version in self.ends)
            found = mean([a - b for a, b in zip(good, bad, strict=True)])
            if found.low > 0:
                break
        return found

    def _limits(self, size: int) -> list[float]:
        """The threshold of each row."""
        good, bad = (self._values(version, size)[0] for version in self.ends)
        if self.threshold is not None:
            return [self.threshold] * len(good)
        return [(a + b) / 2 for a, b in zip(good, bad, strict=True)]

    def _values(self, version: Version, size: int) -> tuple[list[float], str]:
        """Row by row; and why all of them are 0, if the model has fallen apart."""
        if size not in self._benches:
            probes = [probe.first(size) for probe in self._probes]
            self._benches[size] = SharedBench(self._model, probes, on_probe=self._on_probe)
        try:
            return self.goal.values(self._benches[size].measure(version.personality)), ""
        except FallenApartError as error:
            return [0.0] * sum(len(probe.rows[:size]) for probe in self._probes), error.message
