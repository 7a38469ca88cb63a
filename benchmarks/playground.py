"""Every figure that docs/playground.md states: trained and measured anew with the product's own code.

`python -m benchmarks.playground [--seeds 3] [--rows 60]`; about six minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import median, show
from personality.composition.opening import base_of, composer_of
from personality.evaluation.measure import measure
from personality.evaluation.suite import Probe, read_suite
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.evaluation import ProbeResult
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition, Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_tokenizer, threads_for
from personality.playground.repository import general_file, make_playground
from personality.vectors.training.settings import make_settings
from personality.versions.recipe import use_vector

FOUR = ("listening", "concise", "warm", "candid")
SOLO = {
    "listening": "listening.accept",
    "concise": "concise.concise",
    "warm": "warm.warm",
    "candid": "candid.unknown",
}
DOSES = (-1.0, 0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5)
FEW = ((20, 2e-3, "orpo"), (20, 2e-3, "sft"), (20, 3e-3, "orpo"), (20, 3e-3, "sft"), (50, 1e-3, "orpo"))
Results = dict[str, ProbeResult]


class Bench:
    """One playground repository, drawn by a seed, and short ways to train and measure in it."""

    def __init__(self, root: Path, seed: int, rows: int) -> None:
        self.repository: Repository = make_playground(root, seed=seed, probe_rows=rows).repository
        self.root = root
        self.seed = seed
        self.probes: list[Probe] = read_suite(self.repository)
        self._tokenizer = load_tokenizer(base_of(self.repository).folder)

    def train(
        self,
        name: str,
        behavior: str,
        *,
        data: str = "",
        count: int | None = None,
        seed: int | None = None,
        **settings: object,
    ) -> float:
        """Train `behavior`'s data under a name; returns the seconds of training."""
        chosen = {**self.repository.config().training, "seed": self.seed if seed is None else seed, **settings}
        general = self.root / general_file(behavior)
        job = TrainingJob(
            behavior=name,
            data=self.root / f"data/{data or behavior}.jsonl",
            general=general if chosen.get("general_ratio") != 0 else None,
            settings=make_settings(**chosen),
            examples=count,
            allow_repeats=True,
            force=True,
            probe_rows=0,
        )
        trained = train_behavior(self.repository, job)
        return trained.manifest.making.seconds

    def measure(self, uses: Sequence[tuple[str, float]], composition: Composition | None = None) -> Results:
        """Measure the base with these vectors at these scales."""
        found = [use_vector(self.repository, VectorLabel(name), scale) for name, scale in uses]
        personality = Personality(
            base=self.repository.config().base,
            composition=composition or Composition(),
            uses=tuple(sorted(found, key=lambda use: use.behavior)),
        )
        model = load_composed(composer_of(self.repository, personality))
        with threads_for(model):
            return {item.probe: item for item in measure(model, self._tokenizer, self.probes)}


def passed(results: Results, probe: str) -> float:
    return results[probe].passed.value


def probability(results: Results, probe: str) -> float:
    found = results[probe].probability
    assert found is not None
    return found.value


def general(results: Results) -> float:
    own = [item for name, item in results.items() if name.startswith("general.")]
    return sum(sum(item.outcomes) for item in own) / sum(item.passed.n for item in own)


def percent(*values: float) -> str:
    """One value, or the lowest to the highest of several."""
    low, high = min(values), max(values)
    return f"{low:.0%}" if round(low, 2) == round(high, 2) else f"{low:.0%}–{high:.0%}"


def few_examples(bench: Bench) -> None:
    """How `listening` moves with few examples: one row a setting, five seeds each."""
    base = bench.measure([])
    row = [percent(passed(base, name)) for name in ("listening.accept", "listening.push_back")]
    rows = [("base", row[0], percent(probability(base, "listening.accept")), row[1], percent(general(base)), "")]
    for count, lr, method in FEW:
        found, seconds = [], []
        for seed in range(5):
            name = f"few-{count}-{method}-{lr * 1e3:g}-{seed}".replace(".", "_")
            seconds.append(bench.train(name, "listening", count=count, lr=lr, method=method, seed=seed, batch_size=5))
            found.append(bench.measure([(name, 1.0)]))
        rows.append(
            (
                f"{count} + {round(count / 4)}, {method}, lr {lr:g}",
                percent(*(passed(item, "listening.accept") for item in found)),
                percent(*(probability(item, "listening.accept") for item in found)),
                percent(*(passed(item, "listening.push_back") for item in found)),
                percent(*(general(item) for item in found)),
                f"{median(seconds):.2f}",
            )
        )
    columns = ["examples", "accepts", "P(accept)", "pushes back", "general", "seconds of training"]
    show("`listening` from few examples (lowest to highest of five seeds)", columns, rows)


def one_sided(bench: Bench) -> None:
    """What goes wrong without the other side."""
    rows = []
    for lr in (2e-3, 3e-3):
        name = f"sycophant-{lr * 1e3:g}"
        bench.train(name, "listening", data="listening-one-sided", lr=lr)
        found = bench.measure([(name, 1.0)])
        back = percent(passed(found, "listening.push_back"))
        rows.append((f"`listening`, no push-back examples, lr {lr:g}", "pushes back", back))
    for data, what in (("candid-one-sided", "no known-fact contrasts"), ("candid", "with them")):
        name = f"facts-{data}"
        bench.train(name, "candid", data=data, lr=3e-3)
        found = bench.measure([(name, 1.0)])
        rows.append((f"`candid`, {what}, lr 0.003", "tells known facts", percent(passed(found, "candid.known"))))
        rows.append(("", "general", percent(general(found))))
    show("What the other side is for (ORPO, 200 + 50 examples)", ["training", "measure", "passed"], rows)


def composition(benches: Sequence[Bench], lr: float) -> None:
    """Four behaviors at once: the smallest share of a solo effect that is kept."""
    solos: list[dict[str, float]] = []
    for bench in benches:
        solos.append({})
        for behavior in FOUR:
            name = f"{behavior}-{lr * 1e3:g}"
            bench.train(name, behavior, lr=lr)
            solos[-1][behavior] = passed(bench.measure([(name, 1.0)]), SOLO[behavior])
    rows = []
    for title, method, scale in (
        ("sum × 0.6", Composition(), 0.6),
        ("sum × 0.8", Composition(), 0.8),
        ("sum × 1", Composition(), 1.0),
        ("TIES 0.1 `sum` × 1", Composition(method="ties", density=0.1), 1.0),
        ("TIES 0.15 `sum` × 0.9", Composition(method="ties", density=0.15), 0.9),
        ("TIES 0.2 `sum` × 0.9", Composition(method="ties"), 0.9),
        ("TIES 0.2 `sum` × 1", Composition(method="ties"), 1.0),
        ("TIES 0.2 `mean` × 1", Composition(method="ties", normalize="mean"), 1.0),
        ("TIES 0.2 `mean` × 1.5", Composition(method="ties", normalize="mean"), 1.5),
    ):
        kept, abilities, back = [], [], []
        for bench, solo in zip(benches, solos, strict=True):
            found = bench.measure([(f"{behavior}-{lr * 1e3:g}", scale) for behavior in FOUR], method)
            kept.append(min(passed(found, SOLO[behavior]) / solo[behavior] for behavior in FOUR))
            abilities.append(general(found))
            back.append(passed(found, "listening.push_back"))
        rows.append((title, *(f"{k:.0%} / {a:.0%} / {b:.0%}" for k, a, b in zip(kept, abilities, back, strict=True))))
    columns = ["composition", *(f"seed {bench.seed}" for bench in benches)]
    show(f"Four behaviors, ORPO lr {lr:g}: smallest retention / general / push-back", columns, rows)


def doses(bench: Bench, lr: float) -> None:
    """One scale from -1 to 1.5, and the old habit subtracted."""
    name = f"listening-{lr * 1e3:g}"
    bench.train(name, "listening", lr=lr)
    columns = ["scale", "P(accept)", "accepts", "pushes back", "general"]
    title = f"Dose of one scale (`listening`, ORPO 200 + 50, lr {lr:g})"
    show(title, columns, [_dose(bench, name, scale) for scale in DOSES])
    bench.train("habit", "deflecting", lr=1.5e-3, batch_size=10)
    title = "The old habit, trained as `deflecting` and subtracted"
    show(title, columns, [_dose(bench, "habit", scale) for scale in (0.0, -0.2, -0.4, -0.6, -0.8, -1.0)])


def _dose(bench: Bench, name: str, scale: float) -> tuple[str, ...]:
    found = bench.measure([(name, scale)])
    accept, back = "listening.accept", "listening.push_back"
    figures = (probability(found, accept), passed(found, accept), passed(found, back), general(found))
    return (f"{scale:g}", *(percent(figure) for figure in figures))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=60)
    options = parser.parse_args(arguments if arguments is not None else [])
    with tempfile.TemporaryDirectory() as name:
        benches = [Bench(Path(name) / str(seed), seed, options.rows) for seed in range(options.seeds)]
        few_examples(benches[0])
        one_sided(benches[0])
        doses(benches[0], 1e-3)
        for lr in (1e-3, 2e-3):
            composition(benches, lr)


if __name__ == "__main__":
    main(sys.argv[1:])
