"""Whole runs: from a file of examples to a vector that composes, whatever is trained and whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.composition.opening import composer_of
from personality.making.arm import fresh_model
from personality.making.run_folder import RunFolder, unfinished_runs
from personality.making.training_job import TrainingJob
from personality.making.training_run import NoGoError, Trained, train_behavior
from personality.manifests.errors import DataError, UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.vectors.task_vector import open_task_vector
from personality.vectors.training.checkpoints import load_trained, newest
from personality.vectors.training.settings import make_settings
from personality.vectors.training.watch import DivergedError
from personality.versions.changes import add
from personality.versions.history import History
from tests.conftest import run_persona
from tests.tiny_chat import chat_base, write_examples

Persona = Callable[..., tuple[int, str, str]]
ARCHITECTURES = ("llama-bias", "qwen3-tied", "qwen3_moe", "qwen3_5")


def job_on(root: Path, behavior: str = "warm", count: int | None = 8, **settings: Any) -> TrainingJob:
    """A job on a playground's data; settings that are no hyper-parameters belong to the job."""
    names = ("allow_repeats", "fresh", "skip", "force", "contrastive", "avoid", "preflight", "probe_rows")
    own = {name: settings.pop(name) for name in names if name in settings}
    return TrainingJob(
        behavior=behavior,
        data=root / f"data/{behavior}.jsonl",
        general=root / f"data/general-{behavior}.jsonl",
        settings=make_settings(**{"lr": 1e-3, "rank": 8, "batch_size": 5, "max_length": 256, **settings}),
        examples=count,
        **{"probe_rows": 0, **own},
    )


def command(root: Path, *more: str) -> list[str]:
    data = ("--data", "data/warm.jsonl", "--general", "data/general-warm.jsonl")
    return ["train", "warm", *data, "--examples", "40", "--probe-rows", "0", *more]


def process(root: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "personality", *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        **options,
    )


def log_of(root: Path, behavior: str = "warm") -> str:
    """The log of a behavior's run; empty before there is one."""
    runs = [RunFolder(path.parent) for path in root.glob(".persona/runs/*/job.json")]
    own = [run for run in runs if run.job.behavior == behavior]
    return own[0].log.read_text() if own and own[0].log.is_file() else ""


def wait_for_step(root: Path, step: int) -> None:
    """Until the run in another process has taken a step."""
    for _ in range(1200):
        if f'"step": {step},' in log_of(root):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within a minute")


# What is trained, on every architecture


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository on a tiny random base, with examples beside it."""
    root = tmp_path_factory.mktemp(request.param)
    chat_base(request.param, root / "base")
    code, _, err = run_persona("init", "--base", "base", cwd=root)
    assert code == 0, err
    write_examples(root)
    return root


KINDS: dict[str, dict[str, Any]] = {
    "guarded": {"guard": True, "lr": 1e-4},
    "dpo": {"method": "dpo"},
    "sft-dpo": {"method": "sft-dpo"},
    "lora": {"lora_rank": 2},
    "lora-dpo": {"lora_rank": 2, "method": "dpo"},
    "lora-on-bf16": {"lora_rank": 2, "weights": "bf16"},
    "frozen": {"context": "frozen"},
    "frozen-lora": {"context": "frozen", "lora_rank": 2},
    "compensated": {"weights": "bf16-compensated"},
    "stochastic": {"weights": "bf16-stochastic"},
    "only": {"only": ("attention.o",), "layers": "0-1"},
    "checkpointing": {"gradient_checkpointing": True},
    "mini": {"optimizer": "apollo-mini"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_trains_on_every_architecture_and_composes(kind: str, tiny: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny, tmp_path / "repository"))
    repository = Repository(root)
    # A random base babbles, so only one kind is guarded, at a rate that changes little.
    given = {"lr": 5e-3, "batch_size": 5, "rank": 4, "guard": False, **KINDS[kind]}
    if kind == "only" and "qwen3_5" in tiny.name:
        given |= {"only": ("gdn",)}
    job = TrainingJob(
        behavior="listening",
        data=root / "pairs.jsonl",
        general=root / "general.jsonl",
        settings=make_settings(**given),
        probe_rows=0,
        force=True,
    )
    made = train_behavior(repository, job)
    manifest = made.manifest
    assert manifest.encoding == ("low-rank" if "lora" in kind else "delta")
    assert manifest.norm > 0 and made.report is not None
    if kind == "only":
        words = ("linear_attn",) if "qwen3_5" in tiny.name else ("self_attn.o_proj",)
        assert all(any(word in name for word in words) for name in manifest.tensors)
        assert all("layers.2." not in name for name in manifest.tensors)
    version = add(repository, VectorLabel.parse("listening"), scale=0.5).version
    composer = composer_of(repository, version.personality)
    changed = [
        name for name in composer.base.specs if not torch.equal(composer.tensor(name), composer.base.tensor(name))
    ]
    assert changed
    assert set(changed) <= set(manifest.tensors)
    assert not unfinished_runs(repository)


def test_what_an_adapter_trained_is_what_its_vector_holds(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    job = job_on(repository_copy, count=20, lora_rank=4, lr=1e-2)
    kept = repository_copy / "kept"

    def stage(text: str) -> None:
        if text == "storing the vector":  # afterwards the run's folder is cleared away
            shutil.copytree(next(repository.local.glob("runs/*/toward")), kept)

    manifest = train_behavior(repository, job, on_stage=stage).manifest
    vector = open_task_vector(repository, manifest.id, manifest.label)
    trained = fresh_model(composer_of(repository, Personality(base=repository.config().base)), job.settings)
    checkpoint = newest(kept / "1-orpo")
    assert checkpoint is not None
    load_trained(trained, checkpoint)
    layers = {
        name.removeprefix("base_model.model.") + ".weight": module
        for name, module in trained.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(layers) == set(manifest.tensors)
    for name, layer in layers.items():
        wanted = layer.get_delta_weight("default").detach()
        assert torch.allclose(vector.rows(name, 0, wanted.shape[0]), wanted, atol=1e-7)
        assert bool(wanted.any())


# The ledger


def test_an_example_is_trained_on_once(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    first = train_behavior(repository, job_on(repository_copy))
    assert first.new
    assert len(first.manifest.making.data[0].ledger) == 8
    again = train_behavior(repository, job_on(repository_copy))
    assert not again.new and again.report is None and again.manifest == first.manifest
    with pytest.raises(
        DataError, match=r"8 of 12 examples were trained on already, such as .*:1 for `warm@1`"
    ) as caught:
        train_behavior(repository, job_on(repository_copy, count=12))
    assert "--fresh" in caught.value.hint and "--allow-repeats" in caught.value.hint
    assert not unfinished_runs(repository)
    fresh = train_behavior(repository, job_on(repository_copy, count=12, fresh=True)).manifest
    assert not set(fresh.making.data[0].ledger) & set(first.manifest.making.data[0].ledger)
    skipped = train_behavior(repository, job_on(repository_copy, count=8, skip=100)).manifest
    assert skipped.making.training is not None and skipped.making.training.repeated == 0
    repeated = train_behavior(repository, job_on(repository_copy, count=12, allow_repeats=True)).manifest
    assert repeated.making.training is not None and repeated.making.training.repeated == 12
    with pytest.raises(DataError, match=r"has 172 fresh examples, not 173"):
        train_behavior(repository, job_on(repository_copy, count=173, fresh=True))
    # Another behavior's ledger is its own.
    other = job_on(repository_copy).model_copy(update={"behavior": "cordial", "settings": make_settings(lr=2e-3)})
    assert train_behavior(repository, other).new


def test_a_vector_that_is_gone_has_used_nothing(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    made = train_behavior(repository, job_on(repository_copy)).manifest
    repository.manifest_path(made.id).unlink()
    assert train_behavior(repository, job_on(repository_copy, seed=1)).new


# Before


def test_no_go_stops_before_anything_is_trained(repository_copy: Path, persona: Persona) -> None:
    arguments = ["train", "warm", "--data", "data/warm.jsonl", "--general", "data/general-warm.jsonl", "--lr", "0.2"]
    code, out, _ = persona(*arguments, "--examples", "8", "--json", cwd=repository_copy)
    error = json.loads(out)["error"]
    assert (code, error["kind"], error["exit_code"]) == (3, "preflight", 3)
    assert "no-go" in error["message"] and "--force" in error["hint"]
    assert log_of(repository_copy) == ""
    with pytest.raises(NoGoError):
        train_behavior(Repository(repository_copy), job_on(repository_copy, lr=0.2))
    quiet = train_behavior(Repository(repository_copy), job_on(repository_copy, preflight=False))
    assert quiet.preflight is None
    assert quiet.manifest.making.training is not None and quiet.manifest.making.training.preflight == {}


def test_contradicting_jobs_are_refused(repository_copy: Path) -> None:
    from personality.making.training_job import AvoidOptions

    repository = Repository(repository_copy)
    vector = repository.manifests()[0]
    avoid = AvoidOptions(vector=vector.id, label=vector.label)
    with pytest.raises(UsageError, match="--avoid with --weights bf16"):
        train_behavior(repository, job_on(repository_copy, avoid=avoid, weights="bf16"))
    alone = job_on(repository_copy).model_copy(update={"general": None})
    with pytest.raises(UsageError, match="no general data"):
        train_behavior(repository, alone)


# During


def test_a_run_that_collapses_keeps_its_last_good_state(repository_copy: Path, persona: Persona) -> None:
    more = ("--lr", "0.05", "--force", "--check-every", "1", "--json", "--examples", "100", "--allow-repeats")
    code, out, err = persona(*command(repository_copy), *more, cwd=repository_copy)
    assert code == 3, err
    training = json.loads(out)["data"]["vector"]["making"]["training"]
    assert training["stopped"]["text"] in err
    assert 0 < training["steps"] < training["stopped"]["step"]
    assert training["verdict"] == "too large"


def test_avoiding_a_direction_is_reported_beside_its_placebo(repository_copy: Path, persona: Persona) -> None:
    data = ["--data", "data/listening.jsonl", "--general", "data/general.jsonl", "--skip", "100", "--examples", "40"]
    arguments = ["train", "listening", *data, "--avoid", "listening@1", "--avoid-top", "0", "--probe-rows", "4"]
    code, out, err = persona(*arguments, "--json", cwd=repository_copy)
    assert code == 0, err
    made = json.loads(out)["data"]["vector"]
    avoided = made["making"]["training"]["avoided"]
    assert avoided["toward cosines"]["in"] > 0.05 > avoided["toward cosines"]["out"] + 0.04
    assert abs(avoided["placebo cosines"]["in"]) < 0.05
    assert set(avoided["placebo measures"]) == set(made["measures"])
    assert made["lineage"] == [avoided["vector"]]
    code, out, err = persona(*arguments, cwd=repository_copy)
    assert code == 0 and "it was there already" in out


def test_tensorboard_gets_every_figure(repository_copy: Path, tmp_path: Path, persona: Persona) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _, err = persona(*command(repository_copy, "--tensorboard", str(tmp_path / "board")), cwd=repository_copy)
    assert code == 0, err
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    lines = [json.loads(line) for line in log_of(repository_copy).splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    assert [event.value for event in events.Scalars("toward/orpo/loss")] == pytest.approx(losses)
    assert {f"toward/orpo/{name}" for name in ("kl", "margin", "lr", "chosen_gain")} <= set(events.Tags()["scalars"])


# Interruptions, in real processes


def finish(root: Path, *arguments: str) -> dict[str, Any]:
    code, out, err = run_persona(*arguments, "--json", cwd=root)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)["data"]["vector"]
    return found


def test_a_killed_run_is_gone_on_with_and_gives_the_same_vector(repository_copy: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(repository_copy, tmp_path / "whole"))
    running = process(repository_copy, *command(repository_copy, "--check-every", "1"))
    wait_for_step(repository_copy, 3)
    running.kill()
    running.communicate()
    assert [run.job.behavior for run in unfinished_runs(Repository(repository_copy))] == ["warm"]
    assert "warm" not in {item.behavior for item in Repository(repository_copy).manifests()}
    found = finish(repository_copy, *command(repository_copy, "--check-every", "1"))
    assert '"event": "resumed"' in log_of(repository_copy)
    expected = finish(whole, *command(whole, "--check-every", "1"))
    assert found["id"] == expected["id"]
    assert not unfinished_runs(Repository(repository_copy))


def test_control_c_says_how_to_go_on(repository_copy: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(repository_copy, tmp_path / "whole"))
    # Whoever runs the tests in the background may have told all its children to ignore Ctrl-C.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = process(repository_copy, *command(repository_copy), preexec_fn=default)
    wait_for_step(repository_copy, 2)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "stopped after step" in err and "persona train warm --resume" in err
    code, out, told = run_persona("status", cwd=repository_copy)
    assert code == 0 and "persona train warm --resume" in told
    code, out, _ = run_persona("gc", "--dry-run", "--unfinished-runs", cwd=repository_copy)
    assert code == 0 and "an unfinished run of `warm`" in out
    assert "unfinished" not in run_persona("gc", "--dry-run", cwd=repository_copy)[1]
    found = finish(repository_copy, "train", "warm", "--resume")
    assert found["id"] == finish(whole, *command(whole))["id"]


def test_a_full_disk_at_the_end_loses_nothing(repository_copy: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(repository_copy, tmp_path / "whole"))

    # Checkpoints of what is trained are smaller than this, the whole model in float32 is not.
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    running = process(repository_copy, *command(repository_copy), preexec_fn=small_files)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 1, err
    assert "cannot write the trained weights" in err and "the training itself is kept" in err
    assert "warm" not in {item.behavior for item in Repository(repository_copy).manifests()}
    steps = log_of(repository_copy).count('"event": "step"')
    found = finish(repository_copy, "train", "warm", "--resume")
    assert log_of(repository_copy).count('"event": "step"') == steps  # nothing was trained again
    assert found["id"] == finish(whole, *command(whole))["id"]


def test_two_processes_take_the_steps_of_one(repository_copy: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(repository_copy, tmp_path / "whole"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "personality"]
    finished = subprocess.run(
        [sys.executable, *launch, *command(repository_copy, "--json")],
        cwd=repository_copy,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=200,
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)["data"]["vector"]  # one process tells, and only once
    assert found["making"]["training"]["processes"] == 2
    expected = finish(whole, *command(whole))
    assert found["norm"] == pytest.approx(expected["norm"], rel=1e-4)
    losses = [
        [json.loads(line)["loss"] for line in log_of(root).splitlines() if '"event": "step"' in line]
        for root in (repository_copy, whole)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) > 5


def test_a_sharded_launch_is_refused(repository_copy: Path, persona: Persona, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    code, _, err = persona(*command(repository_copy), cwd=repository_copy)
    assert code == 2 and "sharded model" in err


def test_a_run_is_one_commands_work(repository_copy: Path) -> None:
    running = process(repository_copy, *command(repository_copy, "--examples", "200"))
    wait_for_step(repository_copy, 2)
    code, _, err = run_persona(*command(repository_copy, "--examples", "200"), cwd=repository_copy)
    assert code == 1 and "is training here already" in err
    code, out, _ = run_persona("gc", "--yes", "--unfinished-runs", cwd=repository_copy)
    assert code == 0 and "unfinished" not in out
    _, err = running.communicate(timeout=120)
    assert running.returncode == 0, err


def test_a_run_is_gone_on_with_as_it_was_or_not_at_all(repository_copy: Path, persona: Persona) -> None:
    running = process(repository_copy, *command(repository_copy, "--check-every", "1"))
    wait_for_step(repository_copy, 3)
    running.kill()
    running.communicate()
    data = repository_copy / "data/warm.jsonl"
    before = data.read_text()
    data.write_text(before.replace("the", "a", 1))
    code, _, err = persona("train", "warm", "--resume", cwd=repository_copy)
    assert code == 1 and "cannot be gone on with" in err
    for option in ("--lr=0.5", "--no-placebo", "--avoid-top=3", "--probe-rows=40", "--examples=9"):
        code, _, err = persona("train", "warm", "--resume", option, cwd=repository_copy)
        assert code == 2 and "leave out the other options" in err, option
    data.write_text(before)
    assert persona("train", "warm", "--resume", cwd=repository_copy)[0] == 0


def test_a_damaged_record_of_a_run_blocks_nothing(repository_copy: Path, persona: Persona) -> None:
    job = repository_copy / ".persona/runs/0123456789abcdef/job.json"
    job.parent.mkdir(parents=True)
    job.write_text("{}")
    assert persona("status", cwd=repository_copy)[0] == 0
    code, out, _ = persona("gc", "--yes", "--unfinished-runs", cwd=repository_copy)
    assert code == 0 and "an unfinished run that cannot be read" in out
    assert not job.exists()


def test_a_placebo_that_diverges_costs_nothing(repository_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from personality.making import arm
    from personality.making.training_job import AvoidOptions
    from personality.vectors.training.directions import random_directions

    vector = Repository(repository_copy).manifests()[0]

    def broken(directions: Any, seed: int) -> Any:
        return {name: tensor * float("nan") for name, tensor in random_directions(directions, seed).items()}

    monkeypatch.setattr(arm, "random_directions", broken)  # nothing else makes only the placebo fail
    avoid = AvoidOptions(vector=vector.id, label=vector.label, top=None)
    job = job_on(repository_copy, behavior="listening", skip=100, avoid=avoid)
    job = job.model_copy(update={"general": repository_copy / "data/general.jsonl"})
    record = train_behavior(Repository(repository_copy), job).manifest.making.training
    assert record is not None and record.avoided is not None
    assert record.avoided["placebo diverged"] is True
    assert "placebo measures" not in record.avoided


def test_there_is_nothing_to_go_on_with(repository_copy: Path, persona: Persona) -> None:
    code, _, err = persona("train", "warm", "--resume", cwd=repository_copy)
    assert code == 1 and "no unfinished run of `warm`" in err
    code, _, err = persona("train", "warm", cwd=repository_copy)
    assert code == 2 and "no data to train on" in err
    code, _, err = persona("train", "warm", "--resume", "--data", "data/warm.jsonl", cwd=repository_copy)
    assert code == 2


def test_a_run_that_diverges_leaves_no_unfinished_run(repository_copy: Path) -> None:
    with pytest.raises(DivergedError):
        train_behavior(Repository(repository_copy), job_on(repository_copy, count=4, lr=3e38, force=True))
    assert not unfinished_runs(Repository(repository_copy))


def test_versions_know_nothing_of_unfinished_runs(repository_copy: Path) -> None:
    assert len(History(Repository(repository_copy)).versions) == 1


def test_trained_says_what_it_is(repository_copy: Path) -> None:
    made: Trained = train_behavior(Repository(repository_copy), job_on(repository_copy, count=20))
    record = made.manifest.making.training
    assert record is not None
    assert record.steps == 5 and record.processes == 1 and record.stopped is None
    assert record.preflight["verdict"] in ("go", "go with changes")
    assert {"nll before", "nll after", "kl"} == set(record.health)
    assert any("checkup" in entry for entry in record.guard)


@pytest.mark.parametrize("mistake", [["--only", "nonsense"], ["--layers", "99"], ["--tensorboard", "/proc/board"]])
def test_a_mistake_leaves_no_unfinished_run(mistake: list[str], repository_copy: Path, persona: Persona) -> None:
    code, _, err = persona(*command(repository_copy, *mistake), cwd=repository_copy)
    assert code in (1, 2) and "Traceback" not in err
    assert not unfinished_runs(Repository(repository_copy))
    assert "--resume" not in persona("status", cwd=repository_copy)[2]


def test_show_tells_what_train_told(repository_copy: Path, persona: Persona) -> None:
    code, told, err = persona(*command(repository_copy, "--probe-rows", "4"), cwd=repository_copy)
    assert code == 0, err
    code, shown, _ = persona("show", "warm@1", cwd=repository_copy)
    assert code == 0
    for line in (line.strip() for line in told.splitlines()):
        if line.startswith(("verdict", "held-out", "preflight", "warm.warm")):
            assert line in " ".join(shown.split("\n")) or line in shown
    assert "verdict:" in shown and "preflight:" in shown
