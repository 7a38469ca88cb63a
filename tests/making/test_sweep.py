"""Sweeps: every cell is what `train` would make, nothing is stored, finished cells survive, and the knee is found."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from personality.evaluation.intervals import mean
from personality.making.cell_file import CellFile
from personality.making.ledger import trained_on
from personality.making.sweep import Judged, Sweep, find_knee, run_sweep
from personality.making.sweep_cell import Cell, Measures
from personality.making.sweep_plot import check_plot, plot_sweep
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.making.verdict import Judgment, Verdict
from personality.manifests.errors import DataError, PersonaError, UsageError
from personality.manifests.repository import Repository
from personality.vectors.training.settings import make_settings


def job_of(root: Path, **settings: Any) -> TrainingJob:
    return TrainingJob(
        behavior="listening",
        data=root / "data/listening.jsonl",
        general=root / "data/general.jsonl",
        settings=make_settings(**{**Repository(root).config().training, **settings}),
        probe_rows=4,
    )


def cell(examples: int, rate: float) -> Cell:
    sides = {"accept": examples, "push_back": 0, "unlabeled": 0}
    return Cell(
        examples=examples,
        rate=rate,
        settings=make_settings(lr=rate),
        sides=sides,
        steps=examples // 4,
        seconds=0.1,
        stopped=None,
        measures=None,
    )


def judged(examples: int, rate: float, verdict: Verdict, wanted: float = 0.5) -> Judged:
    figure = mean([max(0.0, wanted - 0.05), wanted, min(1.0, wanted + 0.05)])
    return Judged(cell(examples, rate), None, Judgment(verdict, ()), figure, None, figure)


def test_a_cell_is_what_train_makes_and_nothing_is_stored(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    before = {manifest.id for manifest in repository.manifests()}
    used = trained_on(repository, "listening")
    found = run_sweep(repository, job_of(repository_copy), counts=[20, 10], rates=[2e-3])
    assert {manifest.id for manifest in repository.manifests()} == before
    assert trained_on(repository, "listening") == used
    assert [(item.cell.examples, item.cell.rate) for item in found.cells] == [(10, 2e-3), (20, 2e-3)]
    assert not [path for path in (repository.local / "sweeps").iterdir() if path.is_dir()]
    job = job_of(repository_copy, lr=2e-3).model_copy(update={"examples": 20, "allow_repeats": True})
    trained = train_behavior(repository, job)
    measures = found.at(20, 2e-3).cell.measures
    assert measures is not None
    for result in measures.probes:
        assert trained.manifest.measures[result.probe]["passed after"] == round(result.passed.value, 4)
        if result.probability is not None:
            assert trained.manifest.measures[result.probe]["probability after"] == round(result.probability.value, 4)


def test_finished_cells_survive_an_interruption(repository_copy: Path) -> None:
    repository, job = Repository(repository_copy), job_of(repository_copy)

    def stop(done: int, total: int, _: Cell) -> None:
        assert total == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(repository, job, counts=[10], rates=[1e-3, 2e-3], on_cell=stop)
    # As a kill in the middle of a cell leaves it; no process has this number.
    killed = repository.local / "sweeps/.tmp-cell-999999999-00"
    killed.mkdir()
    stages: list[str] = []
    whole = run_sweep(repository, job, counts=[10], rates=[1e-3, 2e-3], on_stage=stages.append)
    assert stages == ["loading the base", "10 examples, rate 0.002"]
    assert not killed.exists()
    stages.clear()
    again = run_sweep(repository, job, counts=[10], rates=[2e-3, 1e-3], on_stage=stages.append)
    assert stages == ["loading the base"]
    assert again == whole
    other = job.model_copy(update={"settings": make_settings(**job.settings.model_dump() | {"seed": 1})})
    run_sweep(repository, other, counts=[10], rates=[1e-3], on_stage=stages.append)
    assert "10 examples, rate 0.001" in stages


def test_a_line_cut_off_by_a_crash_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "sweeps/x.jsonl"
    file = CellFile(path)
    file.add_base(Measures(probes=(), health=None))
    file.add(cell(10, 1e-3))
    file.add(cell(20, 1e-3))
    path.write_bytes(path.read_bytes()[:-30])
    again = CellFile(path)
    assert again.base == Measures(probes=(), health=None)
    assert again.cell(10, 1e-3) == cell(10, 1e-3)
    assert again.cell(20, 1e-3) is None
    again.add(cell(50, 1e-3))
    last = CellFile(path)
    assert last.cell(10, 1e-3) is not None
    assert last.cell(50, 1e-3) == cell(50, 1e-3)


def test_a_run_that_falls_apart_is_a_cell_too(repository_copy: Path) -> None:
    found = run_sweep(Repository(repository_copy), job_of(repository_copy), counts=[20], rates=[0.9])
    assert found.cells[0].judgment.verdict == "too large"
    assert found.cells[0].cell.stopped is not None
    assert found.knee is None


@pytest.mark.slow
def test_default_grid(repository_copy: Path) -> None:
    lines = (repository_copy / "data/listening.jsonl").read_text().splitlines()[:12]
    (repository_copy / "data/listening.jsonl").write_text("\n".join(lines) + "\n")
    found = run_sweep(Repository(repository_copy), job_of(repository_copy, lr=None), rates=[1e-3])
    assert found.counts == [10]
    (repository_copy / "data/listening.jsonl").write_text("\n".join(lines[:5]) + "\n")
    found = run_sweep(Repository(repository_copy), job_of(repository_copy, lr=1e-3))
    assert (found.counts, found.rates) == ([5], [2.5e-4, 5e-4, 1e-3, 2e-3])


def test_two_phases_turn_both_rates(repository_copy: Path) -> None:
    job = job_of(repository_copy, method="sft-dpo", lr=1e-3, dpo_lr=4e-4)
    found = run_sweep(Repository(repository_copy), job, counts=[10], rates=[2e-3])
    assert found.cells[0].cell.settings.dpo_lr == 8e-4


@pytest.mark.parametrize(
    ("counts", "rates", "error", "text"),
    [
        ([0], None, UsageError, "must be positive"),
        ([10], [2.0], UsageError, "between 0 and 1"),
        ([10], [float("nan")], UsageError, "between 0 and 1"),
        ([500], None, DataError, "200 examples, not 500"),
    ],
)
def test_bad_grids(
    repository_copy: Path, counts: list[int], rates: list[float] | None, error: type[PersonaError], text: str
) -> None:
    with pytest.raises(error) as caught:
        run_sweep(Repository(repository_copy), job_of(repository_copy), counts=counts, rates=rates)
    assert text in caught.value.message


def test_too_little_general_data_is_said_before_the_first_cell(repository_copy: Path) -> None:
    lines = (repository_copy / "data/general.jsonl").read_text().splitlines()[:6]
    (repository_copy / "data/general.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="need 25 general ones"):
        run_sweep(Repository(repository_copy), job_of(repository_copy), counts=[10, 100], rates=[1e-3])
    assert not (Repository(repository_copy).local / "sweeps").exists()


def test_no_probes_no_sweep(repository_copy: Path) -> None:
    (repository_copy / "behaviors/listening.toml").unlink()
    (repository_copy / "suites/general.toml").unlink()
    with pytest.raises(DataError, match="no probes of `listening`"):
        run_sweep(Repository(repository_copy), job_of(repository_copy), counts=[10], rates=[1e-3])


def test_the_knee_is_the_smallest_dose_that_is_right() -> None:
    cells = [
        judged(10, 1e-3, "too small"),
        judged(50, 1e-3, "right"),
        judged(200, 1e-3, "forgetting"),
        judged(10, 2e-3, "too small"),
        judged(20, 2e-3, "right"),
        judged(50, 2e-3, "right"),
    ]
    assert find_knee(cells) == cells[4]
    assert find_knee(cells[:3]) == cells[1]
    assert find_knee([cells[0], cells[2]]) is None
    # The same dose by fewer examples.
    assert find_knee([judged(20, 1e-3, "right"), judged(10, 2e-3, "right")]) == judged(10, 2e-3, "right")


def test_a_lucky_small_run_is_not_the_knee() -> None:
    cells = [judged(10, 1e-3, "right"), judged(20, 1e-3, "too small"), judged(50, 1e-3, "right")]
    assert find_knee(cells) == cells[2]


def drawn() -> Sweep:
    cells = tuple(
        judged(count, rate, "right" if count * rate > 0.05 else "too small", min(1.0, count * rate * 10))
        for rate in (1e-3, 2e-3)
        for count in (10, 50, 200)
    )
    figure = mean([0.1, 0.2])
    return Sweep("listening", "orpo", figure, None, figure, cells, find_knee(cells))


def test_the_plot_shows_rates_and_knee(tmp_path: Path) -> None:
    path = tmp_path / "knee.svg"
    plot_sweep(drawn(), path)
    text = path.read_text()
    for words in (
        "rate 0.001",
        "rate 0.002",
        "the knee",
        "right from 50 examples at 0.002",
        "examples of the behavior",
    ):
        assert words in text
    first = path.read_bytes()
    plot_sweep(drawn(), path)
    assert path.read_bytes() == first
    plot_sweep(replace(drawn(), knee=None), tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["knee.svg", "none.png"]


def test_plots_that_cannot_be_drawn_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        check_plot(tmp_path / "knee.gif")
    with pytest.raises(PersonaError, match="no folder"):
        check_plot(tmp_path / "nowhere/knee.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as when it is not installed
    with pytest.raises(PersonaError) as caught:
        check_plot(tmp_path / "knee.png")
    assert 'pip install "personality[plots]"' in caught.value.hint
