"""Runs that are stopped and gone on with: bit for bit what an unbroken run gives."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from personality.manifests.errors import CorruptError
from personality.vectors.training.checkpoints import METER, WEIGHTS, newest, step_of
from personality.vectors.training.examples import Example
from personality.vectors.training.lora import attach_adapters
from personality.vectors.training.run import Callbacks, InterruptedRunError, TrainingReport, fine_tune
from personality.vectors.training.run_log import RunLog
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.step_report import StepReport
from personality.vectors.training.watch import DivergedError

Examples = Callable[[int], list[Example]]
Maker = Callable[..., Any]


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs, and nothing is cleaned up."""


@pytest.fixture
def run(tokenizer: Any, pairs: Examples, generals: Examples) -> Callable[..., TrainingReport]:
    """Train on 20 pairs and 5 general examples; `stop_at` breaks off after so many steps."""

    def go(
        model: Any,
        settings: TrainSettings,
        folder: Path,
        *,
        resume: bool = False,
        stop_at: int | None = None,
        stop: Callable[[], None] | None = None,
        log: RunLog | None = None,
    ) -> TrainingReport:
        taken = 0

        def on_step(step: StepReport) -> None:
            nonlocal taken
            taken += 1
            if taken == stop_at and stop is not None:
                stop()

        folder.mkdir(exist_ok=True)
        return fine_tune(
            model,
            tokenizer,
            pairs(20),
            generals(6),
            settings,
            work_dir=folder,
            callbacks=Callbacks(on_step=on_step, log=log),
            resume=resume,
        )

    return go


def killed() -> None:
    raise Killed


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def prepared(model: Any, settings: TrainSettings) -> Any:
    if settings.weights != "float32":
        model = model.bfloat16()
    return attach_adapters(model, settings) if settings.lora_rank is not None else model


CASES = {
    "orpo": TrainSettings(rank=8, check_every=1),
    "adamw": TrainSettings(optimizer="adamw", check_every=2),
    "mini": TrainSettings(optimizer="apollo-mini", check_every=2),
    "dpo": TrainSettings(method="dpo", rank=8, check_every=2),
    "sft": TrainSettings(method="sft", rank=8, check_every=3),
    "projections renewed": TrainSettings(rank=8, update_proj_gap=2, check_every=2),
    "lora": TrainSettings(rank=8, lora_rank=2, check_every=2),
    "frozen context": TrainSettings(rank=8, context="frozen", check_every=2),
    "compensated": TrainSettings(rank=8, weights="bf16-compensated", check_every=2),
    "stochastic": TrainSettings(rank=8, weights="bf16-stochastic", check_every=2),
}


@pytest.mark.parametrize(("case", "stop_at"), [("orpo", 1), ("orpo", 4), *((case, 3) for case in CASES)])
def test_a_resumed_run_is_bit_identical_to_an_unbroken_one(
    case: str, stop_at: int, llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    settings = CASES[case]
    whole, broken = (prepared(llama(attention_dropout=0.2), settings) for _ in range(2))
    expected = run(whole, settings, tmp_path / "whole")
    with pytest.raises(Killed):
        run(broken, settings, tmp_path / "broken", stop_at=stop_at, stop=killed)
    another = prepared(llama(attention_dropout=0.2), settings)
    torch.manual_seed(stop_at)  # what happened in between must not matter
    found = run(another, settings, tmp_path / "broken", resume=True)
    assert found.losses == expected.losses
    assert found.margins == expected.margins
    assert [replace(step, seconds=0.0) for step in found.reports] == [
        replace(step, seconds=0.0) for step in expected.reports
    ]
    assert found.steps == expected.steps == 5
    assert found.survival == expected.survival
    one, other = weights(whole), weights(another)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_two_phases_goes_on_in_the_second(
    llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    settings = TrainSettings(method="sft-dpo", rank=8, check_every=1)
    whole = llama()
    expected = run(whole, settings, tmp_path / "whole")
    assert [(step.phase, step.step) for step in expected.reports] == [
        *(("sft", k) for k in (1, 2, 3)),
        *(("dpo", k) for k in (1, 2, 3)),
    ]
    with pytest.raises(Killed):
        run(llama(), settings, tmp_path / "broken", stop_at=5, stop=killed)
    another = llama()
    log = RunLog(tmp_path / "log.jsonl")
    found = run(another, settings, tmp_path / "broken", resume=True, log=log)
    assert log.path.read_text().count('"event": "step"') == 2  # the second and third of the second phase
    assert found.losses == expected.losses
    one, other = weights(whole), weights(another)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint_of_it(
    number: signal.Signals, llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    settings = TrainSettings(rank=8, check_every=5)
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match="after step 1 of 5") as caught:
        run(llama(), settings, tmp_path / "a", stop_at=1, stop=lambda: os.kill(os.getpid(), number))
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.hint
    assert signal.getsignal(number) is before
    checkpoint = newest(tmp_path / "a/1-orpo")
    assert checkpoint is not None and step_of(checkpoint) == 1
    resumed, whole = llama(), llama()
    run(resumed, settings, tmp_path / "a", resume=True)
    run(whole, settings, tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_checkpoint_that_was_not_finished_is_passed_over(
    llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    settings = TrainSettings(rank=8, check_every=1)
    with pytest.raises(Killed):
        run(llama(), settings, tmp_path / "a", stop_at=4, stop=killed)
    phase = tmp_path / "a/1-orpo"
    (phase / "checkpoint-3/progress.json").unlink()
    (phase / f"checkpoint-3/{WEIGHTS}").write_bytes(b"half")
    resumed, whole = llama(), llama()
    run(resumed, settings, tmp_path / "a", resume=True)
    run(whole, settings, tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("name", [WEIGHTS, METER, "optimizer.pt", "scheduler.pt", "progress.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    name: str, llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    settings = TrainSettings(rank=8, check_every=1)
    with pytest.raises(Killed):
        run(llama(), settings, tmp_path / "a", stop_at=4, stop=killed)
    path = tmp_path / "a/1-orpo/checkpoint-3" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    log = RunLog(tmp_path / "log.jsonl")
    resumed, whole = llama(), llama()
    run(resumed, settings, tmp_path / "a", resume=True, log=log)
    run(whole, settings, tmp_path / "b")
    assert '"event": "resumed", "arm": "toward", "phase": "orpo", "at": 2' in log.path.read_text()
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_without_a_sound_checkpoint_the_run_begins_anew(
    llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    settings = TrainSettings(rank=8, check_every=1)
    with pytest.raises(Killed):
        run(llama(), settings, tmp_path / "a", stop_at=4, stop=killed)
    for path in (tmp_path / "a/1-orpo").glob(f"*/{WEIGHTS}"):
        path.write_bytes(b"nothing")
    resumed, whole = llama(), llama()
    run(resumed, settings, tmp_path / "a", resume=True)
    run(whole, settings, tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_weights_of_another_model_are_refused(llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path) -> None:
    settings = TrainSettings(rank=8, check_every=1)
    with pytest.raises(Killed):
        run(llama(), settings, tmp_path / "a", stop_at=4, stop=killed)
    with pytest.raises(CorruptError, match="another run"):
        run(llama(hidden_size=64), settings, tmp_path / "a", resume=True)


def test_a_spoiled_state_is_never_written_even_when_asked_to_stop(
    llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    model = llama()

    def spoil() -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(DivergedError, match="NaN or Inf after step 2 of 5") as caught:
        run(model, TrainSettings(rank=8, check_every=5, guard=False), tmp_path / "a", stop_at=2, stop=spoil)
    assert caught.value.step == 2
    assert newest(tmp_path / "a/1-orpo") is None


def test_a_collapse_in_the_second_phase_keeps_the_first(
    llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    model = llama()

    def spoil() -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")

    settings = TrainSettings(method="sft-dpo", rank=8, check_every=3)
    report = run(model, settings, tmp_path / "a", stop_at=4, stop=spoil)
    assert report.sign is not None and report.sign.name == "not-finite"
    assert report.steps == 3
    first = load_file(tmp_path / f"a/1-sft/checkpoint-3/{WEIGHTS}")
    assert all(torch.equal(model.get_parameter(name), value) for name, value in first.items())


def test_a_finished_run_is_read_and_not_repeated(
    llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    settings = TrainSettings(rank=8)
    whole, again = llama(), llama()
    expected = run(whole, settings, tmp_path / "a")
    taken: list[int] = []
    found = run(again, settings, tmp_path / "a", resume=True, stop_at=1, stop=lambda: taken.append(1))
    assert taken == []
    assert found.losses == expected.losses and found.steps == expected.steps
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_run_that_is_begun_anew_forgets_the_checkpoints_of_the_one_before(
    llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    run(llama(), TrainSettings(rank=8, seed=1), tmp_path / "a")
    one, other = llama(), llama()
    run(one, TrainSettings(rank=8, seed=2), tmp_path / "a")
    run(other, TrainSettings(rank=8, seed=2), tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_log_of_a_resumed_run_has_every_step_once(
    llama: Maker, run: Callable[..., TrainingReport], tmp_path: Path
) -> None:
    import json

    settings = TrainSettings(rank=8, check_every=2)
    log = RunLog(tmp_path / "log.jsonl")
    with pytest.raises(Killed):
        run(llama(), settings, tmp_path / "a", stop_at=4, stop=killed, log=log)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "st')  # a kill in the middle of a line
    report = run(llama(), settings, tmp_path / "a", resume=True, log=log)
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if entry["event"] == "step"]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5]
    assert [entry["loss"] for entry in steps] == list(report.losses)
    assert [entry["at"] for entry in entries if entry["event"] == "resumed"] == [2]
