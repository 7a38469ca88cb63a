"""`persona tune`: scales, density and method that keep every behavior, found on one half of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from personality.changing_model import ChangingModel
from personality.evaluation.goals import Goal, find_goal, goals_of
from personality.evaluation.suite import Probe, read_suite, suite_digest
from personality.evaluation.workbench import Workbench
from personality.manifests.errors import DataError, FallenApartError, PersonaError, UsageError
from personality.manifests.evaluation import ProbeResult
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.study import HeldOut, Study, Trial
from personality.manifests.version import Version
from personality.searching.bench import OnProbe, SharedBench
from personality.searching.constraint import Constraint
from personality.searching.held_out import Halves, compare, front_of
from personality.searching.retention import Yardstick, values_of, yardsticks
from personality.versions.changes import Recorded, adopt

HIGHEST = 1.5
_STEP = 0.05
_STARTUP = 12
"""Recipes drawn at random before the sampler learns from what it saw."""

_ALIKE = 0.02
"""Retentions that differ by less count as equal: the best of many recipes by a hair is the luckiest, and often lies at
the edge of a constraint."""

OnTrial = Callable[[int, Trial | None], None]


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        trials: the recipe as it was, then every other recipe that was tried and did not fall apart.
        chosen: of those that keep all constraints, the one with the largest smallest retention, counted up to 1; of
            those within two points of it, the one with most to spare in the constraint that it keeps least. It need
            not be on the front, which knows no reserve.
        personality: the chosen recipe.
        held_out: how it did against the recipe as it was.
        study: for the version that takes it, without that version's id.
    """

    trials: tuple[Trial, ...]
    chosen: Trial
    personality: Personality
    held_out: HeldOut
    study: Study


def tune(
    repository: Repository,
    version: Version,
    maximize: Sequence[str],
    constraints: Sequence[Constraint] = (),
    *,
    trials: int = 60,
    seed: int = 0,
    rows: int | None = None,
    on_trial: OnTrial | None = None,
    on_probe: OnProbe | None = None,
) -> Tuned:
    """Search scales (0 to 1.5), density and method of a version's uses.

    The sampler is Optuna's multi-objective tree-structured Parzen estimator with constraints (Ozaki et al. 2022;
    Watanabe and Hutter 2023). The same seed gives the same search, and what was measured is not measured again, so an
    interrupted search goes on where it stopped.

    Args:
        repository: where; recipes are composed in memory.
        version: what to tune.
        maximize: goals.
        constraints: that the recipe must keep.
        trials: recipes to try, beside the recipe as it was.
        seed: of the search and of the division of rows.
        rows: at most so many rows of each probe, both halves together.
        on_trial: called with each trial's number before it, with None, and after it.
        on_probe: see `measure`.

    Raises:
        UsageError: for a goal that does not exist, or none to maximize.
        DataError: when a probe has fewer than two rows, the version uses nothing, or a vector has no effect to keep.
        PersonaError: when Optuna is not installed, or no recipe keeps all constraints.
    """
    optuna = _optuna()
    uses = [use for use in version.personality.uses if use.scale != 0]
    if not uses:
        raise DataError(f"{version.label} uses no vector: there is nothing to tune", "`persona add NAME` adds one")
    if not maximize:
        raise UsageError("there is nothing to maximize", "name goals: `--maximize listening,concise`")
    probes = read_suite(repository, rows=rows)
    known = goals_of(probes)
    goals = [find_goal(known, name) for name in dict.fromkeys(maximize)]
    limited = {item.goal: find_goal(known, item.goal) for item in constraints}
    needed = {name for goal in (*goals, *limited.values()) for name in goal.probes}
    halves = _halves(repository, [probe for probe in probes if probe.name in needed], seed, on_probe)
    search = _Search(halves.search, version.personality, goals, list(constraints), limited)
    found = [search.trial(0, version.personality)]
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
    study = optuna.create_study(directions=["maximize"] * len(goals), sampler=sampler)
    for start in _starts(uses):
        study.enqueue_trial(start)
    for number in range(1, trials + 1):
        if on_trial:
            on_trial(number, None)
        asked = study.ask()
        try:
            trial = search.trial(number, _recipe(asked, version.personality, uses))
        except FallenApartError:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            continue
        for name, slack in trial.slack.items():
            asked.set_constraint(name, -slack)
        study.tell(asked, [trial.values[goal.name] for goal in goals])
        if search.is_new(number):
            found.append(trial)
        if on_trial:
            on_trial(number, trial)
    found = front_of(found)
    chosen = _choose(found)
    personality = search.recipes[chosen.number]
    held_out = compare(halves.held_out, version.personality, personality, goals, list(constraints), limited)
    record = Study(
        version="",
        tuned=version.id,
        maximize=tuple(goal.name for goal in goals),
        subject_to=tuple(map(str, constraints)),
        seed=seed,
        suites=(suite_digest(halves.search.probes), suite_digest(halves.held_out.probes)),
        tools={"optuna": optuna.__version__},
        trials=tuple(found),
        chosen=chosen.number,
        held_out=held_out,
    )
    return Tuned(tuple(found), chosen, personality, held_out, record)


def take(repository: Repository, tuned: Tuned, message: str = "") -> Recorded:
    """Record the chosen recipe as a version, with the study beside it.

    Raises:
        PersonaError: when there are unsaved edits.
    """
    command = f"tune {', '.join(tuned.study.maximize)}"
    if tuned.study.subject_to:
        command += f" subject to {', '.join(tuned.study.subject_to)}"

    def attached(version: Version) -> dict[str, str]:
        study = tuned.study.model_copy(update={"version": version.id})
        return {f"studies/{version.id}.json": study.to_bytes().decode()}

    return adopt(repository, tuned.personality, command, message, attached)


class _Search:
    """Measures recipes on the rows that are for the search."""

    def __init__(
        self,
        bench: Workbench,
        personality: Personality,
        goals: Sequence[Goal],
        constraints: Sequence[Constraint],
        limited: dict[str, Goal],
    ) -> None:
        self._bench, self._constraints, self._limited = bench, constraints, limited
        self._sticks: list[Yardstick] = yardsticks(bench, goals, personality)
        self._base: Sequence[ProbeResult] = bench.measure(personality.model_copy(update={"uses": ()}))
        self.recipes: dict[int, Personality] = {}

    def is_new(self, number: int) -> bool:
        """Whether no trial before this one had the same recipe."""
        wanted = self.recipes[number].id
        return all(recipe.id != wanted for earlier, recipe in self.recipes.items() if earlier < number)

    def trial(self, number: int, personality: Personality) -> Trial:
        results = self._bench.measure(personality)
        self.recipes[number] = personality
        values = values_of(self._sticks, results)
        pairs = list(zip(self._sticks, values, strict=True))
        return Trial(
            number=number,
            composition=personality.composition,
            scales={use.behavior: use.scale for use in personality.uses},
            values={stick.goal.name: float(rows.mean()) for stick, rows in pairs},
            retention={stick.goal.name: stick.retention(rows) for stick, rows in pairs},
            slack={str(c): c.slack(self._limited[c.goal], self._base, results) for c in self._constraints},
        )


def _choose(trials: Sequence[Trial]) -> Trial:
    """The largest smallest retention, with most to spare among those as good within `_ALIKE`, and of these the one with
    the smallest scales: what changes the base less has fewer side effects.

    Raises:
        PersonaError: when no trial keeps all constraints.
    """
    kept = [trial for trial in trials if trial.feasible]
    if not kept:
        nearest = max(trials, key=lambda trial: min(trial.slack.values()))
        broken = ", ".join(f"{name} by {-slack * 100:.1f} points" for name, slack in nearest.slack.items() if slack < 0)
        raise PersonaError(
            f"none of {len(trials)} recipes keeps all constraints; the nearest one breaks {broken}",
            "loosen a constraint, or go on with more `--trials`: what was measured is kept",
        )
    best = max(min(1.0, trial.smallest) for trial in kept)
    return max(
        (trial for trial in kept if trial.smallest >= best - _ALIKE),
        key=lambda trial: (
            round(min(trial.slack.values(), default=0.0), 6),
            -sum(abs(scale) for scale in trial.scales.values()),
            -trial.number,
        ),
    )


def _recipe(asked: Any, personality: Personality, uses: Sequence[Use]) -> Personality:
    """A recipe as the sampler asks for it; every use keeps its layers and its sign."""
    for use in uses:
        highest = max(HIGHEST, _STEP * round(abs(use.scale) / _STEP))
        scale = asked.suggest_float(use.behavior, 0.0, highest, step=_STEP)
        signed = round(scale if use.scale > 0 else -scale, 6) + 0.0
        personality = personality.with_use(use.model_copy(update={"scale": signed, "density": None}))
    composition: dict[str, Any] = {"method": asked.suggest_categorical("(method)", ["linear", "ties"])}
    if composition["method"] == "ties":
        composition["density"] = round(asked.suggest_float("(density)", _STEP, 1.0, step=_STEP), 6)
    return personality.model_copy(update={"composition": personality.composition.model_copy(update=composition)})


def _starts(uses: Sequence[Use]) -> list[dict[str, Any]]:
    """Recipes to begin with: the sum at 0.8 and at 1, and TIES at a low and at its usual density."""
    alike = [{use.behavior: scale for use in uses} for scale in (0.8, 1.0, 1.0, 1.0)]
    methods: list[dict[str, Any]] = [
        {"(method)": "linear"},
        {"(method)": "linear"},
        {"(method)": "ties", "(density)": 0.1},
        {"(method)": "ties", "(density)": 0.2},
    ]
    return [{**scales, **method} for scales, method in zip(alike, methods, strict=True)]


def _halves(repository: Repository, probes: Sequence[Probe], seed: int, on_probe: OnProbe | None) -> Halves:
    """Every probe's rows divided by lot into those for the search and those held out."""
    for probe in probes:
        if len(probe.rows) < 2:
            raise DataError(
                f"the probe `{probe.name}` has {len(probe.rows)} row: one half is for the search, one is held out",
                "give it more rows",
            )
    divided: tuple[list[Probe], list[Probe]] = ([], [])
    for probe in probes:
        places = list(range(len(probe.rows)))
        Random(f"{seed} {probe.name}").shuffle(places)
        middle = (len(places) + 1) // 2
        for half, part in zip(divided, (places[:middle], places[middle:]), strict=True):
            half.append(probe.at(sorted(part)))
    model = ChangingModel(repository)
    search, held_out = (SharedBench(model, half, on_probe=on_probe) for half in divided)
    return Halves(search, held_out)


def _optuna() -> Any:
    """The optimizer, silent.

    Raises:
        PersonaError: when it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise PersonaError(
            "Optuna, which searches, is not installed", "install it: `pip install 'personality[search]'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
