"""Preventative steering: what acts in training is not learned, and nothing of it stays in the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from personality import processes
from personality.composition.opening import composer_of
from personality.making.arm import Bench
from personality.making.checkups import Checkups
from personality.making.prevention import Prevention, prevent_options
from personality.making.training_data import read_data
from personality.making.training_job import PreventOptions, TrainingJob
from personality.making.training_run import check_job, train_behavior
from personality.making.vector_records import record_vector
from personality.manifests.canonical import digest
from personality.manifests.errors import IncompatibleError, UsageError
from personality.manifests.manifest import Making
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import LayerRange, Personality
from personality.manifests.repository import Repository
from personality.manifests.steering_record import SteeringRecord
from personality.model import load_composed, load_tokenizer
from personality.playground.repository import make_playground
from personality.vectors.steering.decoder_layers import decoder_layers, residual_width
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.steering_file import store_steering
from personality.vectors.steering.steering_vector import Gate, SteeringVector
from personality.vectors.training.guard import Checkup
from personality.vectors.training.run import InterruptedRunError
from personality.vectors.training.settings import make_settings
from personality.vectors.training.step_report import StepReport
from tests.steering_fixtures import decision_direction, steer
from tests.tiny_readings import tiny_model

Persona = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playground with `warm@1`, which acts where a reply is decided."""
    root = tmp_path_factory.mktemp("prevention") / "play"
    make_playground(root, probe_rows=4)
    (root / "suites/general.toml").unlink()  # only what is trained is looked at
    steer(Repository(root), "warm", 3, decision_direction("warm", 3))
    return root


@pytest.fixture
def root(play: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(play, tmp_path / "play"))


def job_on(
    root: Path, prevent: PreventOptions | None = None, count: int = 16, probe_rows: int = 4, **settings: Any
) -> TrainingJob:
    # A high rate, so that a few steps teach much; without checkups, which take as long as those steps.
    given = {**Repository(root).config().training, "lr": 4e-3, "guard": False, **settings}
    return TrainingJob(
        behavior="warm",
        data=root / "data/warm.jsonl",
        general=root / "data/general-warm.jsonl",
        settings=make_settings(**given),
        examples=count,
        prevent=prevent,
        preflight=False,
        allow_repeats=True,
        probe_rows=probe_rows,
    )


def options(root: Path, scale: float = 1.0, **more: Any) -> PreventOptions:
    return prevent_options(Repository(root), VectorLabel("warm", 1), scale, **more)


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4, "lr": 3e-2, "context": "frozen"}], ids=str)
def test_what_acts_in_training_is_not_learned(settings: dict[str, Any], root: Path) -> None:
    """The same data with and without the trait's direction: the trait's probability, measured without it."""
    repository = Repository(root)
    plain = train_behavior(repository, job_on(root, **settings)).manifest
    prevented = train_behavior(repository, job_on(root, options(root), **settings)).manifest
    before = plain.measures["warm.warm"]["probability before"]
    learned, kept_out = (item.measures["warm.warm"]["probability after"] for item in (plain, prevented))
    assert prevented.id != plain.id
    assert learned > before + 0.1
    assert kept_out < before + 0.1 * (learned - before)
    record = prevented.making.training
    assert record is not None and record.prevented is not None
    assert record.prevented["label"] == "warm@1" and record.prevented["scale"] == 1.0
    assert prevented.lineage == (options(root).vector,) and plain.lineage == ()


def test_a_random_direction_of_the_same_length_prevents_nothing(root: Path) -> None:
    """So it is the direction that does it, not that something acts."""
    repository = Repository(root)
    direction = 0.2 * decision_direction("warm", 3)
    noise = torch.randn(96, generator=torch.Generator().manual_seed(0))
    after = []
    for vector in (direction, noise * direction.norm() / noise.norm()):
        steer(repository, "warm", 3, vector)
        prevent = prevent_options(repository, VectorLabel("warm"))
        after.append(train_behavior(repository, job_on(root, prevent)).manifest.measures["warm.warm"])
    assert after[1]["probability after"] > after[0]["probability after"] + 0.1


def test_checkups_see_the_model_without_it_and_nothing_stays(root: Path, tmp_path: Path) -> None:
    repository = Repository(root)
    composer = composer_of(repository, Personality(base=repository.config().base))
    tokenizer, job = load_tokenizer(composer.base.folder), job_on(root, lr=1e-9)
    data = read_data(repository, job)
    base = load_composed(composer)
    checkups = Checkups(base, tokenizer, data.unseen, data.behavior[:2])
    strong = 1e4 * torch.randn(96, generator=torch.Generator().manual_seed(0))
    prevention = Prevention((Injection(3, strong, "all", "add"),))
    with prevention.acting(base):
        assert checkups.measure(base, 0).kl > 1
        assert prevention.paused(checkups.measure)(base, 0).kl == pytest.approx(0, abs=1e-6)
        assert checkups.measure(base, 0).kl > 1  # it acts again
    assert checkups.measure(base, 0).kl == pytest.approx(0, abs=1e-6)
    bench = Bench(composer, tokenizer, job.settings, data.general, checkups, None, None, False, prevention)
    # So strong a direction would be a collapse: the guard must not see it, at a rate that moves no weight.
    arm = bench.train(data.behavior, tmp_path / "toward")
    assert arm.report.sign is None and arm.report.losses[0] > 5
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in arm.model.modules())


def test_it_is_taken_off_while_paused_and_when_training_fails() -> None:
    model = tiny_model("llama")
    last = decoder_layers(model)[-1]
    prevention = Prevention(
        (Injection(len(decoder_layers(model)) - 1, torch.ones(residual_width(model)), "all", "add"),)
    )
    seen = []

    def broken(model: Any, step: int) -> Checkup:
        seen.append(len(last._forward_hooks))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), prevention.acting(model):
        seen.append(len(last._forward_hooks))
        with pytest.raises(RuntimeError):
            prevention.paused(broken)(model, 1)
        seen.append(len(last._forward_hooks))  # a checkup that failed puts it back
        prevention.paused(broken)(model, 1)
    assert seen == [1, 0, 1, 0]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_recomputed_activations_are_steered_too(root: Path) -> None:
    """Gradient checkpointing runs the layers again for the backward pass."""
    repository = Repository(root)
    found = [
        train_behavior(
            repository, job_on(root, options(root), count=4, probe_rows=0, gradient_checkpointing=flag)
        ).manifest
        for flag in (False, True)
    ]
    assert found[0].norm == pytest.approx(found[1].norm, rel=1e-3)


def test_an_interrupted_run_goes_on_under_the_direction(root: Path) -> None:
    repository = Repository(root)
    whole = train_behavior(repository, job_on(root, options(root), probe_rows=0)).manifest
    (root / f"manifests/{whole.id}.json").unlink()

    def stop(step: StepReport) -> None:
        if step.step == 3:
            raise InterruptedRunError("stopped")

    shutil.rmtree(root / ".persona/runs")
    with pytest.raises(InterruptedRunError):
        train_behavior(repository, job_on(root, options(root), probe_rows=0), on_step=stop)
    assert list(root.glob(".persona/runs/*/toward/*/checkpoint-*"))
    again = train_behavior(repository, job_on(root, options(root), probe_rows=0)).manifest
    assert again.id == whole.id


def test_the_run_is_another_one_and_others_keep_their_identity(root: Path) -> None:
    plain, weak, strong = job_on(root), job_on(root, options(root)), job_on(root, options(root, 2.0))
    keys = {job.key("base", "behavior", "general", {}) for job in (plain, weak, strong)}
    assert len(keys) == 3
    # What a job was before it could prevent or promote anything.
    known = {
        "format": 1,
        "behavior": "warm",
        "data": "behavior",
        "general": "general",
        "settings": plain.settings.model_dump(mode="json"),
        "contrastive": False,
        "avoid": None,
    }
    before = digest({"job": known, "base": "base", "tools": {}})[:16]
    assert plain.key("base", "behavior", "general", {}) == before
    promoted = plain.model_copy(update={"promotes": "ab" * 32})
    assert promoted.key("base", "behavior", "general", {}) == plain.key("base", "behavior", "general", {})
    assert strong.model_copy(update={"promotes": weak.lineage[0]}).lineage == weak.lineage


def test_what_cannot_prevent_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(root)
    with pytest.raises(UsageError, match="prevents nothing"):
        options(root, 0.0)
    with pytest.raises(UsageError, match="prevents nothing"):
        options(root, float("inf"))
    with pytest.raises(IncompatibleError, match="no direction for layer 1"):
        train_behavior(repository, job_on(root, options(root, layers=LayerRange(first=1, last=1))))
    vector = SteeringVector({3: torch.ones(96)}, "all", "add", (3,), gate=Gate(3, torch.ones(96) / 96**0.5, 0.0))
    with repository.writing():
        record = SteeringRecord(positions="all", mode="add", layers=(3,))
        stored, base = store_steering(repository, vector), repository.config().base
        record_vector(repository, "warm", base, stored, Making(how="extract"), command="extract", steering=record)
    conditional = prevent_options(repository, VectorLabel("warm", 2))
    with pytest.raises(UsageError, match="pass its condition"):
        train_behavior(repository, job_on(root, conditional, context="frozen"))
    train_behavior(repository, job_on(root, count=2, probe_rows=0))
    with pytest.raises(UsageError, match="task vector"):
        prevent_options(repository, VectorLabel("warm", 3))
    assert prevent_options(repository, VectorLabel("warm")).label == "warm@2"  # the newest that has a direction
    monkeypatch.setattr(processes, "world", lambda: 2)
    with pytest.raises(UsageError, match="2 processes"):
        check_job(job_on(root, options(root)))


def test_the_command_says_what_acted(root: Path, persona: Persona) -> None:
    data = ("--data", "data/warm.jsonl", "--general", "data/general-warm.jsonl", "--examples", "2", "--probe-rows", "0")
    code, _, err = persona("train", "warm", *data, "--prevent-scale", "2", cwd=root)
    assert code == 2 and "--prevent NAME" in err
    code, out, err = persona(
        "train", "warm", *data, "--no-preflight", "--no-guard", "--prevent", "warm@1", "--prevent-layers", "3", cwd=root
    )
    assert code == 0, err
    assert "trained with warm@1 × 1 acting in layers 3-3, measured without it" in out
    for more in (("--prevent", "warm@1"), ("--prevent-scale", "2"), ("--prevent-layers", "3"), ("--keep-magnitude",)):
        code, _, err = persona("train", "warm", "--resume", *more, cwd=root)
        assert code == 2 and "a run's own data and settings" in err
