"""`--auto`: rounds on fresh examples, one thing changed each time, and why it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from personality.making.auto import AutoReport, Round, auto_train
from personality.making.training_job import TrainingJob
from personality.manifests.errors import DataError
from personality.manifests.repository import Repository
from personality.vectors.training.settings import make_settings


def carry_out(root: Path, rounds: int, data: str = "listening", **options: Any) -> AutoReport:
    settings = {**Repository(root).config().training, **options.pop("settings", {})}
    job = TrainingJob(
        behavior="listening",
        data=root / f"data/{data}.jsonl",
        general=root / "data/general.jsonl",
        settings=make_settings(**settings),
        **{"preflight": False, "probe_rows": 12, **options},
    )
    return auto_train(Repository(root), job, rounds)


def ledger(item: Round) -> set[str]:
    assert item.manifest is not None
    return set(item.manifest.making.data[0].ledger)


def test_more_examples_until_it_is_right(repository_copy: Path) -> None:
    seen: list[Round] = []
    settings = make_settings(**Repository(repository_copy).config().training)
    job = TrainingJob(
        behavior="listening",
        data=repository_copy / "data/listening.jsonl",
        general=repository_copy / "data/general.jsonl",
        settings=settings,
        preflight=False,
        probe_rows=12,
    )
    report = auto_train(Repository(repository_copy), job, 5, on_round=seen.append)
    assert list(report.rounds) == seen
    assert [item.verdict for item in seen] == ["too small"] * (len(seen) - 1) + ["right"]
    assert [item.examples for item in seen][:2] == [20, 40]
    assert seen[1].change == "20 → 40 examples, since too small"
    assert {item.rate for item in seen[:2]} == {1e-3}
    assert report.best == seen[-1]
    assert report.ended == "the last round is right"
    # Each on fresh examples, each a vector of its own after the fixture's listening@1.
    assert not ledger(seen[0]) & ledger(seen[1])
    assert [item.manifest.label for item in seen if item.manifest] == [f"listening@{n + 2}" for n in range(len(seen))]


@pytest.mark.slow
def test_too_small_raises_the_rate_when_examples_run_short(repository_copy: Path) -> None:
    lines = (repository_copy / "data/listening.jsonl").read_text().splitlines()[:100]  # 40 are used, 60 fresh
    (repository_copy / "data/listening.jsonl").write_text("\n".join(lines) + "\n")
    report = carry_out(repository_copy, 5, settings={"lr": 2e-4})
    assert [(item.examples, item.rate) for item in report.rounds] == [(20, 2e-4), (20, 4e-4), (20, 8e-4)]
    assert report.rounds[1].change == "rate 0.0002 → 0.0004, since too small"
    assert report.ended == "only 0 fresh examples are left, a round takes 20"
    assert report.best == report.rounds[-1]  # too small, but it harms nothing
    with pytest.raises(DataError, match="trained on all 100 examples"):
        carry_out(repository_copy, 1)


def test_the_rate_stops_at_the_highest(repository_copy: Path) -> None:
    lines = (repository_copy / "data/listening.jsonl").read_text().splitlines()[:52]
    (repository_copy / "data/listening.jsonl").write_text("\n".join(lines) + "\n")
    report = carry_out(repository_copy, 3, examples=4, settings={"lr": 4e-3, "orpo_lambda": 1e-4, "warmup": 0.9})
    assert len(report.rounds) == 1
    assert report.rounds[0].verdict == "too small"
    assert "highest rate to try, 0.004" in report.ended


@pytest.mark.slow
def test_too_large_lowers_the_rate_and_closes_in(repository_copy: Path) -> None:
    report = carry_out(repository_copy, 3, settings={"lr": 0.03})
    first, second = report.rounds[:2]
    assert first.verdict == "too large"
    assert (second.rate, second.examples) == (0.015, 20)
    assert second.change == "rate 0.03 → 0.015, since too large"
    assert report.best is None or report.best.verdict in ("right", "too small")


def test_a_run_that_leaves_nothing_is_a_round_too(repository_copy: Path) -> None:
    report = carry_out(repository_copy, 1, settings={"lr": 0.9})
    assert report.rounds[0].verdict == "too large"
    if report.rounds[0].manifest is None:
        assert report.rounds[0].advice
    assert report.best is None
    assert report.ended == "no further round was asked for"


def test_one_sided_data_ends_it(repository_copy: Path) -> None:
    report = carry_out(repository_copy, 4, data="listening-one-sided", examples=60, settings={"lr": 2e-3})
    assert [item.verdict for item in report.rounds] == ["too large"]
    assert "without its other side" in report.ended
    assert report.best is None


def test_without_probes_there_is_nothing_to_go_by(repository_copy: Path) -> None:
    (repository_copy / "behaviors/listening.toml").unlink()
    report = carry_out(repository_copy, 4)
    assert [item.verdict for item in report.rounds] == ["unknown"]
    assert report.ended.startswith("there is nothing to judge by")
