"""`sweep`: a grid of doses, examples × learning rate, each from the fresh base, and the smallest that is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from personality import processes
from personality.composition.opening import composer_of
from personality.environment import build_environment, tool_versions
from personality.evaluation.intervals import mean, share
from personality.evaluation.suite import Probe, read_suite, suite_digest
from personality.making.cell_file import CellFile
from personality.making.checkups import Checkups
from personality.making.dose import dose_of
from personality.making.sweep_cell import Cell, Measures, Trial
from personality.making.training_data import TrainingData, read_data
from personality.making.training_job import TrainingJob
from personality.making.verdict import OPENING, Change, Effects, Judgment, Role, compare, judge, role_of
from personality.manifests.atomic import abandoned
from personality.manifests.canonical import digest
from personality.manifests.errors import DataError, UsageError
from personality.manifests.evaluation import Figure, ProbeResult
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import device, load_composed, load_tokenizer
from personality.vectors.training.batches import plan_batches
from personality.vectors.training.examples import digest_examples, read_examples
from personality.vectors.training.presets import needs_rejected, phases_of
from personality.vectors.training.run import InterruptedRunError
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.step_report import StepReport

COUNTS = (10, 20, 50, 100, 200)
FACTORS = (0.25, 0.5, 1.0, 2.0)
"""Of the rate that would be used without a sweep."""


@dataclass(frozen=True)
class Judged:
    """A cell with what it did.

    Attributes:
        cell: as trained.
        effects: probe by probe, compared with the base; None when nothing was left to measure.
        judgment: the verdict.
        wanted: probability of the wanted opening over the rows of the behavior's own probes, or their share of passing
            replies where one of them declares no openings; None without such probes.
        held: the same over its probes that must hold, such as those that push back.
        ability: share of passing replies over the probes of general ability.
    """

    cell: Cell
    effects: Effects | None
    judgment: Judgment
    wanted: Figure | None
    held: Figure | None
    ability: Figure | None

    @property
    def dose(self) -> float:
        """Examples times rate: about how far the weights can go."""
        return self.cell.examples * self.cell.rate

    @property
    def nll(self) -> Figure | None:
        """Rise of the negative log-likelihood of held-out general text, nats per token."""
        return self.effects.nll if self.effects is not None else None


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        behavior: its name.
        method: the objective.
        wanted, held, ability: of the base, as in `Judged`.
        cells: by rate, then by number of examples.
        knee: the smallest dose that is right; None when none is.
    """

    behavior: str
    method: str
    wanted: Figure | None
    held: Figure | None
    ability: Figure | None
    cells: tuple[Judged, ...]
    knee: Judged | None

    @property
    def rates(self) -> list[float]:
        """The learning rates, ascending."""
        return sorted({item.cell.rate for item in self.cells})

    @property
    def counts(self) -> list[int]:
        """The numbers of examples, ascending."""
        return sorted({item.cell.examples for item in self.cells})

    def at(self, examples: int, rate: float) -> Judged:
        """The cell of a dose."""
        return next(item for item in self.cells if (item.cell.examples, item.cell.rate) == (examples, rate))


def run_sweep(
    repository: Repository,
    job: TrainingJob,
    *,
    counts: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_cell: Callable[[int, int, Cell], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Sweep:
    """Train and measure every dose of a grid; nothing is stored in the repository, and no example counts as used.

    A cell is what `train` with its number of examples and its rate would make. Finished cells are kept in
    `.persona/sweeps/` and used again by an equal sweep, a wider one included.

    Args:
        repository: where.
        job: behavior, data and settings; its `examples` and the settings' rate are overruled.
        counts: numbers of examples, each from the top of the data; None for `COUNTS` as far as the data goes.
        rates: peak learning rates; None for `FACTORS` times the one that `job.settings` means.
        on_stage: told what is being done.
        on_cell: told of each cell: how many are done, of how many, and the last one.
        on_step: told of each training step.

    Raises:
        DataError: for data that cannot be used, or too little of it; for a repository without probes.
        UsageError: a count or rate that is not positive.
        InterruptedRunError: somebody stopped it; the finished cells are kept.
    """
    if processes.world() > 1:
        raise UsageError("a sweep is one process's work", "start it without `accelerate launch` or `torchrun`")
    told = on_stage or (lambda stage: None)
    amounts = _counts(job, counts)
    data = {count: _data(repository, job, count) for count in amounts}
    # Each smaller run holds out the same examples and more: all are judged by those that every run holds out.
    held_out = min((item.held_out for item in data.values()), key=len)
    known = [job.behavior] if job.behavior in repository.behaviors() else []
    probes = read_suite(repository, known, job.probe_rows)
    if not probes:
        raise DataError(
            f"there are no probes of `{job.behavior}` and none of general ability, so no dose can be judged",
            f"add [[probes]] to behaviors/{job.behavior}.toml (docs/on-disk.md shows how)",
        )
    told("loading the base")
    composer = composer_of(repository, Personality(base=repository.config().base))
    tokenizer = load_tokenizer(composer.base.folder)
    base = load_composed(composer)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    settings = _grid_settings(job.settings, rates, parameters)
    largest = data[amounts[-1]]
    checkups = None
    if job.settings.guard and largest.unseen:
        prompts = [*largest.behavior[:4], *largest.unseen[:4]]
        checkups = Checkups(base, tokenizer, largest.unseen, prompts, max_length=job.settings.max_length)
    folder = repository.local / "sweeps"
    for path in abandoned(folder, deep=False):  # checkpoints of a cell that was killed
        shutil.rmtree(path, ignore_errors=True)
    file = CellFile(folder / f"{_key(repository, job, data, probes, held_out)}.jsonl")
    trial = Trial(composer, tokenizer, parameters, probes, held_out, checkups, folder)
    if file.base is None:
        told("measuring the base")
        file.add_base(trial.measure(base))
    del base  # a cell loads its own, and there may be room for one only
    assert file.base is not None
    plan = [(count, own) for count in amounts for own in settings]
    cells: list[Cell] = []
    for count, own in plan:
        assert own.lr is not None
        cell = file.cell(count, own.lr)
        if cell is None:
            told(f"{count} examples, rate {own.lr:g}")
            try:
                cell = trial.cell(data[count].behavior, data[count].general, own, on_step)
            except InterruptedRunError as error:
                raise InterruptedRunError(
                    f"stopped after {len(cells)} of {len(plan)} cells",
                    "they are kept: the same command goes on from there",
                ) from error
            file.add(cell)
        cells.append(cell)
        if on_cell:
            on_cell(len(cells), len(plan), cell)
    return _judged(job, probes, file.base, cells, parameters)


def measured_by(changes: Sequence[Change]) -> str:
    """In what `Judged.wanted` or `Judged.held` is stated, for people.

    Args:
        changes: of all cells, in `Effects.wanted` or `Effects.held`.
    """
    openings = {change.probe for change in changes if change.word == OPENING}
    whole = openings == {change.probe for change in changes}
    return "probability of the wanted opening" if whole else "share of replies that pass"


def find_knee(cells: Sequence[Judged]) -> Judged | None:
    """The smallest dose that is right: enough for the behavior, and nothing is lost.

    At each rate it is the fewest examples from which on no number is too small again, so that a lucky small run does
    not count; of these the one with the smallest product of examples and rate, then the fewest examples.
    """
    found = []
    for rate in {item.cell.rate for item in cells}:
        column = sorted((item for item in cells if item.cell.rate == rate), key=lambda item: item.cell.examples)
        enough = column
        for place, item in enumerate(column, start=1):
            if item.judgment.verdict == "too small":
                enough = column[place:]
        found += [item for item in enough if item.judgment.verdict == "right"][:1]
    # Rounded: 20 × 0.001 and 10 × 0.002 are the same dose.
    return min(found, key=lambda item: (round(item.dose, 9), item.cell.examples), default=None)


def _counts(job: TrainingJob, counts: Sequence[int] | None) -> list[int]:
    examples = read_examples(job.data, need_rejected=needs_rejected(job.settings.method))
    there = len(examples) - job.skip
    if counts is None:
        return [count for count in COUNTS if count <= there] or [max(there, 1)]
    if not counts or min(counts) < 1:
        raise UsageError(
            f"numbers of examples must be positive, not {min(counts, default=0)}", "such as `--counts 20,50`"
        )
    return sorted(set(counts))


def _data(repository: Repository, job: TrainingJob, count: int) -> TrainingData:
    """What a run on so many examples would use; all that is wrong with it is said before the first cell."""
    data = read_data(repository, job.model_copy(update={"examples": count, "allow_repeats": True, "fresh": False}))
    settings = job.settings
    plan_batches(
        len(data.behavior),
        len(data.general),
        batch_size=settings.batch_size,
        general_ratio=settings.general_ratio,
        seed=settings.seed,
    )
    return data


def _grid_settings(settings: TrainSettings, rates: Sequence[float] | None, parameters: int) -> list[TrainSettings]:
    """The settings of each rate, ascending."""
    usual = settings.rate_of(phases_of(settings.method)[0], parameters)
    chosen = rates if rates is not None else [float(f"{usual * factor:.3g}") for factor in FACTORS]
    if not chosen or not all(0 < rate < 1 for rate in chosen):
        raise UsageError(f"learning rates must lie between 0 and 1, not {list(chosen)}", "such as `--rates 1e-5,2e-5`")
    return [settings.at_rate(rate, parameters) for rate in sorted(set(chosen))]


def _key(
    repository: Repository,
    job: TrainingJob,
    data: dict[int, TrainingData],
    probes: list[Probe],
    held_out: Sequence[Any],
) -> str:
    """Identity of everything that cells of one file share; counts and rates may differ."""
    largest = data[max(data)]
    everything = read_examples(job.data, need_rejected=False)
    return digest(
        {
            "behavior": job.behavior,
            "base": repository.config().base.fingerprint,
            "data": digest_examples(everything[job.skip :]),
            "general": digest_examples([*largest.general, *largest.held_out]),
            "held out": digest_examples(held_out),
            "probes": suite_digest(probes),
            "settings": job.settings.model_dump(mode="json", exclude={"lr", "dpo_lr"})
            # The second phase's rate follows from the first's and from these two.
            | ({"rates": [job.settings.lr, job.settings.dpo_lr]} if job.settings.method == "sft-dpo" else {}),
            "tools": tool_versions() | build_environment(device()),
        }
    )[:16]


def _judged(job: TrainingJob, probes: list[Probe], base: Measures, cells: Sequence[Cell], parameters: int) -> Sweep:
    found = []
    for cell in cells:
        effects = None
        figures: tuple[Figure | None, ...] = (None, None, None)
        if cell.measures is not None:
            effects = compare(
                job.behavior, probes, base.probes, cell.measures.probes, base.health, cell.measures.health
            )
            figures = _figures(job.behavior, probes, base.probes, cell.measures.probes)
        judgment = judge(effects, dose_of(cell.settings, cell.sides, cell.sign, parameters))
        found.append(Judged(cell, effects, judgment, *figures))
    found.sort(key=lambda item: (item.cell.rate, item.cell.examples))
    wanted, held, ability = _figures(job.behavior, probes, base.probes, base.probes)
    return Sweep(job.behavior, job.settings.method, wanted, held, ability, tuple(found), find_knee(found))


def _figures(
    behavior: str, probes: Sequence[Probe], base: Sequence[ProbeResult], results: Sequence[ProbeResult]
) -> tuple[Figure | None, Figure | None, Figure | None]:
    """What is wanted, what must hold, and general ability: one figure each."""
    found: dict[Role, list[ProbeResult]] = {"wanted": [], "held": [], "ability": []}
    for probe, before, after in zip(probes, base, results, strict=True):
        found[role_of(behavior, probe, before)].append(after)
    return _pooled(found["wanted"]), _pooled(found["held"]), _pooled(found["ability"])


def _pooled(results: Sequence[ProbeResult]) -> Figure | None:
    if not results:
        return None
    if all(item.probabilities for item in results):
        return mean([value for item in results for value in item.probabilities])
    return share([value for item in results for value in item.outcomes])
