"""Gates: what a version must keep, as a file says it; for CI, and before a version is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from personality.evaluation.goals import find_goal, goals_of
from personality.evaluation.health import FIGURES, health_changes, health_rows, measure_health
from personality.evaluation.intervals import paired_share_difference
from personality.evaluation.judgment import judgment_changes, judgments
from personality.evaluation.probe import Probe
from personality.evaluation.suite import read_suite
from personality.evaluation.workbench import Workbench
from personality.manifests.errors import DataError, NotFoundError, UsageError
from personality.manifests.evaluation import Figure, HealthResult, ProbeResult
from personality.manifests.personality_record import Personality
from personality.manifests.record import Frozen
from personality.manifests.repository import Repository
from personality.manifests.toml_text import parse_toml, validate
from personality.versions.history import History
from personality.versions.recipe import working_personality

_HEALTH = "health."
_ROUNDING = 1e-9  # 0.98 − 1 is a little less than −0.02
_JUDGMENT = ("sycophancy", "discrimination")


class Requirement(Frozen):
    """One `[[require]]` table.

    Attributes:
        goal: `general`, `push_back`, a behavior or a probe (see `Goal`); `BEHAVIOR.sycophancy` or
            `BEHAVIOR.discrimination`; `health.NAME` with a name of `HealthResult`.
        at_least, at_most: for the version's own figure.
        change_at_least, change_at_most: for the paired difference from its parent.
        by: the share of greedy replies that pass, or the probability of the wanted opening.
        sure: whether all of the 95% interval must keep the bound, and not the estimate alone.
    """

    goal: str
    at_least: float | None = None
    at_most: float | None = None
    change_at_least: float | None = None
    change_at_most: float | None = None
    by: Literal["passed", "probability"] = "passed"
    sure: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.bounds():
            names = ", ".join(f"`{name}`" for name in _BOUNDS)
            raise ValueError(f"the requirement on `{self.goal}` has no bound: give one of {names}")
        return self

    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by name."""
        return {name: value for name in _BOUNDS if (value := getattr(self, name)) is not None}


_BOUNDS = ("at_least", "at_most", "change_at_least", "change_at_most")


class Gate(Frozen):
    """A gate's file."""

    require: tuple[Requirement, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Measures:
    """What a personality was measured to do."""

    results: Sequence[ProbeResult]
    health: HealthResult | None = None


@dataclass(frozen=True)
class Check:
    """One bound of a gate, and what stands against it."""

    goal: str
    bound: str
    limit: float
    figure: Figure
    by: str
    kept: bool

    def __str__(self) -> str:
        low, high = self.figure.low, self.figure.high
        what = f"{self.goal} ({self.by})" if self.by != "passed" else self.goal
        sign = "+" if self.bound.startswith("change") else ""
        return (
            f"{what}: {self.bound} {self.limit:g}, measured {self.figure.value:{sign}.4g} "
            f"[{low:{sign}.4g}, {high:{sign}.4g}], n = {self.figure.n}"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data with every field."""
        fields = {name: getattr(self, name) for name in ("goal", "bound", "limit", "by", "kept")}
        return {**fields, "figure": self.figure.as_json()}


def read_gate(path: Path) -> Gate:
    """Read a gate's file.

    Raises:
        NotFoundError, DataError, CorruptError: when there is none, or it cannot be read.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}", "save the file as UTF-8") from error
    except OSError as error:
        raise NotFoundError(f"cannot read the gate {path}: {error.strerror}", "docs/evaluation.md shows one") from None
    return validate(Gate, parse_toml(text, str(path)), str(path))


def needed_probes(gate: Gate, probes: Sequence[Probe]) -> list[Probe]:
    """The probes that a gate's goals rest on, in the suite's order.

    Raises:
        UsageError: when the gate names what the suite does not measure, so that this is known before anything is.
    """
    goals = goals_of(probes)
    names: set[str] = set()
    for item in gate.require:
        behavior, _, name = item.goal.rpartition(".")
        if name in _JUDGMENT:
            names |= {probe.name for probe in probes if probe.name.startswith(f"{behavior}.") and probe.side}
        elif not item.goal.startswith(_HEALTH):
            names |= set(find_goal(goals, item.goal).probes)
    return [probe for probe in probes if probe.name in names]


def check_gate(gate: Gate, probes: Sequence[Probe], before: Measures, after: Measures) -> list[Check]:
    """Hold a version against a gate.

    Args:
        gate: what it must keep.
        probes: that both were measured with.
        before: the parent; the version itself where it has none.
        after: the version.

    Raises:
        UsageError: when the gate names what the suite does not measure.
    """
    found = []
    for item in gate.require:
        for name, limit in item.bounds().items():
            change = name.startswith("change")
            figure = _change(item, probes, before, after) if change else _figure(item, probes, after)
            least = name.endswith("least")
            value = (figure.low if least else figure.high) if item.sure else figure.value
            room = value - limit if least else limit - value
            found.append(Check(item.goal, name, limit, figure, item.by, kept=room >= -_ROUNDING))
    return found


def check_personality(repository: Repository, gate: Gate, personality: Personality) -> list[Check]:
    """Hold a recipe that is no version yet against a gate and the newest version; it is measured in memory.

    What is measured here is kept, so that `persona eval` of the version that it becomes asks nothing twice.

    Args:
        repository: where, with its suite.
        gate: what the recipe must keep.
        personality: the recipe.

    Raises:
        UsageError: as `check_gate`.
        DataError: when the repository has no probes.
        PersonaError: when the recipe cannot be composed or has fallen apart.
    """
    suite = read_suite(repository)
    probes = needed_probes(gate, suite)
    bench = Workbench(repository, probes or suite)
    text, prompts = health_rows(repository, suite)
    base = personality.model_copy(update={"uses": ()})
    measures = []
    for item in (History(repository).head(working_personality(repository)).personality, personality):
        well = None
        if text and any(one.goal.startswith(_HEALTH) for one in gate.require):
            well = measure_health(bench, base, item, text, prompts)
        measures.append(Measures(bench.measure(item) if probes else (), well))
    return check_gate(gate, probes, *measures)


def _figure(item: Requirement, probes: Sequence[Probe], found: Measures) -> Figure:
    if item.goal.startswith(_HEALTH):
        return _of_health(item.goal, found.health)
    behavior, _, name = item.goal.rpartition(".")
    if name in _JUDGMENT:
        known = {one.behavior: one.figures() for one in judgments(probes, found.results)}
        return _of_judgment(item, behavior, name, known)
    goal = find_goal(goals_of(probes), item.goal)
    return goal.passed(found.results) if item.by == "passed" else goal.value(found.results)


def _change(item: Requirement, probes: Sequence[Probe], before: Measures, after: Measures) -> Figure:
    if item.goal.startswith(_HEALTH):
        for measures in (before, after):
            _of_health(item.goal, measures.health)
        assert before.health is not None and after.health is not None
        changes = health_changes(before.health, after.health)
        name = item.goal.removeprefix(_HEALTH)
        if name not in changes:
            raise UsageError(f"the change of `{item.goal}` is not measured", f"it is of: {', '.join(changes)}")
        return changes[name]
    behavior, _, name = item.goal.rpartition(".")
    if name in _JUDGMENT:
        return _of_judgment(item, behavior, name, judgment_changes(probes, before.results, after.results))
    goal = find_goal(goals_of(probes), item.goal)
    if item.by == "probability":
        return goal.change(before.results, after.results)
    return paired_share_difference(goal.outcomes(before.results), goal.outcomes(after.results))


def _of_health(name: str, found: HealthResult | None) -> Figure:
    if found is None:
        raise UsageError(
            f"the gate asks for `{name}`, and health was not measured",
            "the general suite needs rows with `chosen`, or a `text` file; and leave `--no-health` out",
        )
    figure = getattr(found, name.removeprefix(_HEALTH), None)
    if not isinstance(figure, Figure):
        known = [f"{_HEALTH}{field}" for field in (*FIGURES, "kl_95")]
        raise UsageError(f"there is nothing to measure called `{name}`", f"there are: {', '.join(known)}")
    return figure


def _of_judgment(item: Requirement, behavior: str, name: str, found: dict[str, dict[str, Figure]]) -> Figure:
    if behavior not in found:
        raise UsageError(
            f"the gate asks for `{item.goal}`, and `{behavior}` has not both sides in this suite",
            'its probes need `side = "accept"` and `side = "push_back"`',
        )
    key = name if item.by == "passed" else f"{name}_p"
    if key not in found[behavior]:
        raise UsageError(f"`{item.goal}` has no figure by probability", "its probes declare no openings")
    return found[behavior][key]
