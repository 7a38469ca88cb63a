"""How well `persona check` forecasts: every figure that docs/check.md states, with the product's own code.

`python -m benchmarks.forecast [--root DIR] [--recipes 60] [--rows 20] [--seeds 0 1] [--advice]`; a seed takes about
six minutes on one core. In a folder that is kept nothing is trained or measured twice.

A seed draws the training data, the vectors and the recipes: four behaviors are trained alone, random recipes of two to
four of them are forecast, and then measured.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.playground import FOUR, SOLO, Bench
from benchmarks.table import show
from personality.changing_model import ChangingModel
from personality.evaluation.goals import GENERAL, PUSH_BACK, goals_of
from personality.evaluation.suite import Probe, read_suite
from personality.evaluation.workbench import Workbench
from personality.forecast.advice import KEPT, STRAINED, advise
from personality.forecast.figures import UseFigures, pairs_of, use_figures
from personality.forecast.forecast import Forecast, Forecaster
from personality.forecast.steering_against import mean_states
from personality.forecast.sums import PartSums
from personality.manifests.evaluation import ProbeResult
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.repository import Repository
from personality.versions.recipe import use_vector

LR = 1e-3
SHOWN = 0.2  # a smaller effect of a behavior alone is no effect that could be lost
LOST, FELL = 0.2, 0.05  # from which a loss counts as one, for the table of warnings
RULES: dict[str, Callable[[UseFigures], float]] = {
    "least effective scale": lambda use: use.effective,
    "least kept": lambda use: use.kept,
    "least surviving of ‖τ‖²": lambda use: use.surviving_norm,
    "least scale as typed": lambda use: use.scale,
}
DENSITIES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
RESAMPLES = 2000


@dataclass(frozen=True)
class Case:
    """One recipe: what was foreseen and what was measured.

    Attributes:
        found: its forecast.
        figures: every candidate, the greater the worse.
        losses: of each behavior that shows alone at the same scale: the share of that effect that is gone, 0 to 1.
        general, push_back: how much lower than the base's, 0 to 1.
    """

    found: Forecast
    figures: dict[str, float]
    losses: dict[str, float]
    general: float
    push_back: float

    @property
    def loss(self) -> float:
        return max(self.losses.values())

    @property
    def least_kept(self) -> float:
        return min(use.kept for use in self.found.uses if use.label in self.losses)


class Field:
    """A playground with four vectors, measured by the same rows all the time."""

    def __init__(self, root: Path, seed: int, rows: int) -> None:
        if not root.exists():
            bench = Bench(root, seed, rows)
            for behavior in FOUR:
                bench.train(behavior, behavior, lr=LR)
        self.repository = Repository(root)
        wanted = {*SOLO.values(), "listening.push_back"}
        self.probes: list[Probe] = [
            probe for probe in read_suite(self.repository) if probe.name in wanted or probe.name.startswith("general.")
        ]
        self.workbench = Workbench(self.repository, self.probes)
        self.own = {
            behavior: Workbench(self.repository, [probe for probe in self.probes if probe.name == SOLO[behavior]])
            for behavior in FOUR
        }
        self.forecaster = Forecaster(self.repository)
        self.model = ChangingModel(self.repository)
        self.goals = goals_of(self.probes)
        self._states: dict[tuple[str, str], Tensor] = {}
        self.nothing = self.workbench.measure(self.personality({}))

    def personality(self, scales: dict[str, float], composition: Composition | None = None) -> Personality:
        uses = (use_vector(self.repository, VectorLabel(name), scales[name]) for name in sorted(scales))
        base = self.repository.config().base
        return Personality(base=base, composition=composition or Composition(), uses=tuple(uses))

    def value(self, goal: str, results: Sequence[ProbeResult]) -> float:
        return float(np.mean(self.goals[goal].values(results)))

    def losses(self, asked: Personality, given: Personality | None = None) -> dict[str, float]:
        """Against each behavior alone at the scale asked for, whole: one too small to show anything loses nothing.

        Args:
            asked: the recipe.
            given: what is measured in its place.
        """
        together, found = self.workbench.measure(given or asked), {}
        for use in asked.uses:
            probe = SOLO[use.behavior]
            before = self.value(probe, self.nothing)
            alone = self.value(probe, self.own[use.behavior].measure(self.personality({use.behavior: use.scale})))
            if alone - before >= SHOWN:
                kept = (self.value(probe, together) - before) / (alone - before)
                found[use.label] = float(np.clip(1 - kept, 0, 1))
        return found

    def fall(self, goal: str, personality: Personality) -> float:
        return self.value(goal, self.nothing) - self.value(goal, self.workbench.measure(personality))

    def case(self, personality: Personality) -> Case | None:
        """None where no behavior shows alone."""
        losses = self.losses(personality)
        if not losses:
            return None
        uses, layers = self.forecaster.sums(personality)
        total = sum(layers.values(), PartSums.zeros(len(uses)))
        found = self.forecaster.forecast(personality, run=False)
        shown = [index for index, use in enumerate(uses) if use.label in losses]
        figures = candidates(uses, layers, total, shown) | {"strain": found.strain}
        figures["1 − shift of activations kept"] = 1 - min(self.shifts(personality)[index] for index in shown)
        general, push_back = (self.fall(goal, personality) for goal in (GENERAL, PUSH_BACK))
        return Case(found, figures, losses, general, push_back)

    def shifts(self, personality: Personality) -> list[float]:
        """⟨H, h_i⟩ / ‖h_i‖²: mean shifts of the last layer at the last tokens of a behavior's prompts, H of the recipe
        and h_i of the behavior alone.
        """
        found = []
        for use in personality.uses:
            alone = self.personality({use.behavior: use.scale})
            probes = self.own[use.behavior].probes
            for item in (self.personality({}), alone):
                if (item.id, use.behavior) not in self._states:
                    self._states[item.id, use.behavior] = mean_states(self.model, item, probes)[-1]
            start, own = (self._states[item.id, use.behavior] for item in (self.personality({}), alone))
            together = mean_states(self.model, personality, probes)[-1]
            found.append(float((together - start) @ (own - start) / (own - start).square().sum()))
        return found


def candidates(
    uses: Sequence[Use], layers: dict[int | None, PartSums], total: PartSums, shown: Sequence[int]
) -> dict[str, float]:
    """What could foretell a loss, the greater the worse; of vectors, the worst among those that show alone."""
    square = np.diag(total.gram)
    scales = np.array([use.scale for use in uses])
    kept, length = total.along / square, float(np.sqrt(total.delta))
    figures = use_figures(uses, total)
    by_layer = np.array([item.along / np.diag(item.gram) for item in layers.values()])
    pairs = [pair.whole for pair in pairs_of(uses, total, layers)]
    worst: Callable[[Sequence[float]], float] = lambda values: 1 - min(values[index] for index in shown)  # noqa: E731
    return {
        "1 − kept": worst(kept),
        "1 − kept in the worst layer": worst(by_layer.min(0)),
        "1 − kept, both scales cut at 1": worst(np.minimum(kept * scales, 1) / np.minimum(scales, 1)),
        "1 − effective scale": worst(kept * scales),
        "1 − cosine of Δ and s τ": worst(total.along / np.sqrt(square) / length),
        "1 − survives, of ‖τ‖²": worst([item.surviving_norm for item in figures]),
        "1 − survives, of elements": worst([item.surviving for item in figures]),
        "most opposed pair: −cosine": max(-(pair.cosine or 0) for pair in pairs),
        "most opposed pair: opposite signs": max(pair.opposed or 0 for pair in pairs),
        "most opposed pair: lost": max(pair.lost for pair in pairs),
        "largest overlap": max(pair.overlap for pair in pairs),
        "‖Δ‖ / ‖W‖": length / float(np.sqrt(total.base)),
        "‖Δ‖ / longest ‖s τ‖": length / float(np.sqrt(square.max())),
        "sum of scales": float(scales.sum()),
        "number of behaviors": float(len(uses)),
    }


def draw(rng: random.Random) -> tuple[dict[str, float], Composition]:
    """Two to four behaviors, scales 0.3 to 1.5, linear or TIES of any density."""
    some = rng.sample(FOUR, rng.randint(2, 4))
    scales = {behavior: rng.randrange(3, 16) / 10 for behavior in some}
    if rng.random() < 0.5:
        return scales, Composition()
    density, normalize = rng.choice(DENSITIES), rng.choice(("sum", "mean"))
    return scales, Composition(method="ties", density=density, normalize=normalize)


def ranks(values: Sequence[float]) -> np.ndarray:
    """From 1; equal values share the mean of theirs."""
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    a, b = ranks(first), ranks(second)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def correlation(first: Sequence[float], second: Sequence[float]) -> str:
    """With a 95% percentile bootstrap interval over recipes."""
    a, b = np.asarray(first), np.asarray(second)
    picks = np.random.default_rng(0).integers(0, len(a), size=(RESAMPLES, len(a)))
    low, high = np.percentile([spearman(a[pick], b[pick]) for pick in picks], [2.5, 97.5])
    return f"{spearman(a, b):+.2f} [{low:+.2f}, {high:+.2f}]"


def report(seed: int, cases: Sequence[Case]) -> None:
    measured = {
        "largest loss of a solo effect": [case.loss for case in cases],
        "loss of general ability": [case.general for case in cases],
        "loss of push-back": [case.push_back for case in cases],
    }
    rows = [
        (name, *(correlation([case.figures[name] for case in cases], values) for values in measured.values()))
        for name in cases[0].figures
    ]
    show(f"Seed {seed}: rank correlation over {len(cases)} recipes", ["forecast", *measured], rows)
    rows = [
        (name, *(f"{x:.1%}" for x in np.percentile(found, [0, 25, 50, 75, 100]))) for name, found in measured.items()
    ]
    show(f"Seed {seed}: what was measured", ["loss", "least", "25%", "median", "75%", "most"], rows)
    uses = [(use, case) for case in cases for use in case.found.uses if use.label in case.losses]
    lost = [case.losses[use.label] for use, case in uses]
    print(f"\nuse by use ({len(uses)}): 1 − kept {correlation([1 - use.kept for use, _ in uses], lost)}")
    for method in ("linear", "ties"):
        own = [case for case in cases if case.found.personality.composition.method == method]
        kept = correlation([1 - case.least_kept for case in own], [case.loss for case in own])
        strain = correlation([case.found.strain for case in own], [case.general for case in own])
        print(f"{method} alone ({len(own)}): 1 − kept, loss {kept}; strain, general {strain}")
    some = [case for case in cases if len(case.losses) > 1 and case.loss >= 0.1]
    chance = np.mean([1 / len(case.losses) for case in some])
    print(f"\nworst-hit behavior named, in {len(some)} recipes with a loss ≥ 10% (by chance {chance:.0%}):")
    for name, key in RULES.items():
        hits = [_named(case, key) == max(case.losses, key=lambda label, case=case: case.losses[label]) for case in some]
        print(f"- {name}: {sum(hits)}")
    _warnings(cases)


def _named(case: Case, key: Callable[[UseFigures], float]) -> str:
    return min((use for use in case.found.uses if use.label in case.losses), key=key).label


def _warnings(cases: Sequence[Case]) -> None:
    rows = []
    for name, warned, happened in (
        (
            f"kept < {KEPT:g}; a loss ≥ {LOST:.0%}",
            [c.least_kept < KEPT for c in cases],
            [c.loss >= LOST for c in cases],
        ),
        (
            f"strain ≥ {STRAINED:g}; general ability ≥ {FELL:.0%} lower",
            [case.found.strain >= STRAINED for case in cases],
            [case.general >= FELL for case in cases],
        ),
    ):
        table = [
            sum(w == want and h == have for w, h in zip(warned, happened, strict=True))
            for want, have in ((True, True), (True, False), (False, True), (False, False))
        ]
        rows.append((name, *map(str, table)))
    show("Warnings", ["", "warned, came", "warned, did not come", "not warned, came", "neither"], rows)


def advice(field: Field, cases: Sequence[Case]) -> None:
    """Measure what is advised where something is warned of."""
    before, after = [], []
    for case in cases:
        better = advise(case.found, lambda other: field.forecaster.forecast(other, run=False))
        if better is not None:
            losses = field.losses(case.found.personality, better.personality)
            before.append((case.loss, case.general))
            after.append((max(losses.values()), field.fall(GENERAL, better.personality)))
    rows = [
        (name, *(f"{np.mean([item[index] for item in found]):.1%}" for found in (before, after)))
        for index, name in enumerate(("largest loss of a solo effect", "loss of general ability"))
    ]
    show(f"What is advised, in {len(before)} recipes that were warned of: means", ["", "as drawn", "as advised"], rows)


def run(root: Path, options: argparse.Namespace) -> None:
    for seed in options.seeds:
        field = Field(root / str(seed), seed, options.rows)
        rng = random.Random(100 * (seed + 1))
        recipes = [field.personality(*draw(rng)) for _ in range(options.recipes)]
        cases = [case for case in map(field.case, recipes) if case is not None]
        report(seed, cases)
        if options.advice:
            advice(field, cases)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, help="a folder to keep; what was measured there is not measured again")
    parser.add_argument("--recipes", type=int, default=60)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--advice", action="store_true", help="also measure what is advised")
    options = parser.parse_args(arguments if arguments is not None else [])
    if options.root is not None:
        run(options.root, options)
    else:
        with tempfile.TemporaryDirectory() as name:
            run(Path(name), options)


if __name__ == "__main__":
    main(sys.argv[1:])
