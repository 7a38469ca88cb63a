"""Snapshots of real runs, published to a server that computes what it was told to serve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personality.builds.certificate import Certificate
from personality.live import publishing
from personality.live.earlier import Earlier, find_earlier, live_folder
from personality.live.live_report import LiveReport
from personality.live.publisher import Publisher
from personality.live.publishing import LiveOptions
from personality.live.snapshot_export import SnapshotExport
from personality.making.training_job import TrainingJob
from personality.making.training_run import Trained, train_behavior
from personality.manifests.errors import IncompatibleError, PersonaError, UsageError
from personality.manifests.repository import Repository
from personality.model import load_model
from personality.serving.client import Client, ServerError
from personality.vectors.training.run import InterruptedRunError
from personality.vectors.training.settings import make_settings
from personality.vectors.training.step_report import StepReport
from personality.versions.history import History
from tests.live.fake_server import FakeServer

Persona = Callable[..., tuple[int, str, str]]


def job(repository: Repository, **settings: Any) -> TrainingJob:
    data = repository.root / "data"
    return TrainingJob(
        behavior="warm",
        data=data / "warm.jsonl",
        general=data / "general-warm.jsonl",
        settings=make_settings(**{"lr": 1e-3, "rank": 8, "batch_size": 5, "max_length": 256, **settings}),
        examples=40,
        probe_rows=0,
        preflight=False,
        force=True,
        allow_repeats=True,
    )


def run(repository: Repository, server: FakeServer, **given: Any) -> tuple[Trained, LiveReport]:
    """Train while the server answers."""
    names = ("every", "scale", "keep")
    options = LiveOptions(server.url, **{name: given.pop(name) for name in names if name in given})
    trained = train_behavior(repository, job(repository, **given), live=options)
    assert trained.live is not None
    return trained, trained.live


class ComposedHere(SnapshotExport):
    """What composes snapshots, in this process: for trainings that wait for it, and spare it a process of its own."""

    def close(self) -> None:
        """There is no process to end."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training wait for each snapshot to be served, so that none is passed over."""
    monkeypatch.setattr(publishing, "SnapshotProcess", ComposedHere)
    take = Publisher.take

    def taken(self: Publisher, *arguments: Any) -> None:
        take(self, *arguments)
        assert self.wait(60)

    monkeypatch.setattr(Publisher, "take", taken)


def outcomes(report: LiveReport) -> list[tuple[int, str]]:
    return [(item.step, item.outcome) for item in report.snapshots]


@pytest.mark.usefixtures("patient")
def test_snapshots_are_served_and_the_server_is_taken_back(
    repository: Repository, server: FakeServer, exported: Path
) -> None:
    trained, report = run(repository, server, every=4, scale=0.7)
    assert outcomes(report) == [(4, "published"), (8, "published"), (10, "published")]
    assert server.labels == ["live:warm:step-4", "live:warm:step-8", "live:warm:step-10", "v2"]
    assert server.folder == exported
    assert (report.before, report.after, report.problem) == ("v2", "v2", "")
    assert all(item.switching > 0 and item.composing > 0 and item.version for item in report.published)
    assert not list(live_folder(repository).glob("*"))
    # Nothing of it is in the repository: neither vectors nor versions, and the vector is what it would have been.
    assert History(repository).head().label == "v2"
    twin = Repository(Path(shutil.copytree(repository.root, repository.root.with_name("twin"))))
    (twin.manifest_path(trained.manifest.id)).unlink()
    shutil.rmtree(twin.local / "runs")
    assert train_behavior(twin, job(twin)).manifest.id == trained.manifest.id
    events = [json.loads(line) for line in _log(repository).splitlines()]
    assert [event["at"] for event in events if event["event"] == "live published"][:2] == [4, 8]


def _log(repository: Repository) -> str:
    return next(path for path in repository.local.glob("runs/*/log.jsonl") if "live" in path.read_text()).read_text()


@pytest.mark.usefixtures("patient")
def test_a_snapshot_is_the_newest_version_with_the_vector_as_it_is(repository: Repository, server: FakeServer) -> None:
    import torch

    from personality.composition.opening import composer_of
    from personality.manifests.names import VectorLabel
    from personality.model import load_composed
    from personality.versions.changes import add

    _, report = run(repository, server, every=10, scale=0.7, keep=True)
    assert outcomes(report) == [(10, "published")] and report.after == "live:warm:step-10" == server.label
    certificate = Certificate.read(server.folder / Certificate.file_name)
    assert certificate.in_weights == ("concise@1 × 0.5", "warm@1 × 0.7")
    kept = load_model(server.folder)
    version = add(repository, VectorLabel.parse("warm"), scale=0.7).version
    assert version.personality.id == certificate.personality
    same = dict(load_composed(composer_of(repository, version.personality)).named_parameters())
    assert all(torch.equal(parameter, same[name]) for name, parameter in kept.named_parameters())
    # What stays is an export like others: the next run takes the server back to it.
    assert find_earlier(repository, Client(server.url)).folder == server.folder
    assert [path.name for path in server.folder.parent.iterdir()] == [server.folder.name]


@pytest.mark.usefixtures("patient")
def test_adapters_are_published_too(repository: Repository, server: FakeServer) -> None:
    _, report = run(repository, server, every=5, lora_rank=4, lr=1e-2)
    assert outcomes(report)[0] == (5, "published"), report


def test_training_does_not_wait_for_a_slow_server(repository: Repository, server: FakeServer) -> None:
    server.slow = 1.0
    trained, report = run(repository, server, every=1)
    assert {outcome for _, outcome in outcomes(report)} == {"published", "passed over"}
    published = report.published
    assert 1 <= len(published) <= 4
    assert trained.report is not None and trained.report.steps == 10
    assert report.after == "v2" == server.label


@pytest.mark.usefixtures("patient")
def test_a_server_that_goes_away_is_no_reason_to_stop(repository: Repository, server: FakeServer) -> None:
    options = LiveOptions(server.url, every=2)

    def on_step(step: StepReport) -> None:
        server.away = 3 <= step.step < 7

    trained = train_behavior(repository, job(repository), live=options, on_step=on_step)
    report = trained.live
    assert report is not None and trained.new and trained.report is not None and trained.report.steps == 10
    found = dict(outcomes(report))
    assert (found[2], found[4], found[6]) == ("published", "failed", "failed")
    assert "cannot be reached" in report.snapshots[1].text
    assert found[8] == "published" and server.label == "v2"  # it was back in time
    # Away to the end: the result is kept, and what is to be done is said.
    other = job(repository, seed=1)

    def leaves(step: StepReport) -> None:
        server.away = step.step >= 3

    report = train_behavior(repository, other, live=options, on_step=leaves).live
    assert report is not None and report.after == ""
    assert "cannot be reached" in report.problem and "persona deploy v2 --server" in report.problem
    # The server still serves the snapshot, so its folder is still there, and the next run knows the way back.
    server.away = False
    assert server.label.startswith("live:warm:step-") and server.folder.is_dir()
    assert find_earlier(repository, Client(server.url)).label == "v2"
    _, report = run(repository, server, every=5, seed=2)
    assert server.labels[-1] == "v2" and report.before == "v2"


@pytest.mark.usefixtures("patient")
def test_a_switch_that_gives_wrong_answers_is_taken_back(repository: Repository, server: FakeServer) -> None:
    server.garbled = 1
    _, report = run(repository, server, every=4)
    assert outcomes(report)[:2] == [(4, "failed"), (8, "published")]
    assert "serves again, as verified" in report.snapshots[0].text or "v2" in report.snapshots[0].text
    assert server.labels[:3] == ["live:warm:step-4", "v2", "live:warm:step-8"] and server.label == "v2"


@pytest.mark.usefixtures("patient")
def test_the_guard_decides(repository: Repository, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from personality.vectors.training.guard import CollapseGuard, Sign, StepFigures

    observe = CollapseGuard.observe

    def warned(self: CollapseGuard, report: StepFigures) -> Sign | None:
        found = observe(self, report)
        if report.step == 4:
            self._warnings.append(Sign("stutter", 4, 0.15, 0.1, "4-grams repeat"))
        if report.step == 7:
            return Sign("chosen-falls", 7, 1.0, 0.2, "the answers have become less likely")
        return found

    monkeypatch.setattr(CollapseGuard, "observe", warned)
    trained, report = run(repository, server, every=2, keep=True)
    assert outcomes(report) == [(2, "published"), (4, "held"), (6, "published")]
    assert report.snapshots[1].text == "the guard warns: 4-grams repeat"
    assert report.stopped == "the answers have become less likely"
    assert report.after == "live:warm:step-6" == server.label
    assert trained.report is not None and trained.report.steps == 6


@pytest.mark.usefixtures("patient")
def test_a_run_that_collapses_leaves_the_server_as_it_was(repository: Repository, server: FakeServer) -> None:
    options = LiveOptions(server.url, every=1)
    job_ = job(repository, lr=0.5)
    try:
        report = train_behavior(repository, job_, live=options).live
        assert report is not None and report.stopped
    except PersonaError:
        pass  # there was no good state at all
    assert server.label == "v2"
    assert not list(live_folder(repository).glob("*"))


@pytest.mark.usefixtures("patient")
def test_an_interrupted_run_takes_the_server_back(repository: Repository, server: FakeServer) -> None:
    import os
    import signal

    def on_step(step: StepReport) -> None:
        if step.step == 5:
            assert server.label == "live:warm:step-4"
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError):
        train_behavior(repository, job(repository), live=LiveOptions(server.url, every=2), on_step=on_step)
    assert server.label == "v2"
    _, report = run(repository, server, every=2)  # goes on where it stopped
    assert outcomes(report)[0][0] == 6


def test_what_cannot_be_served_is_refused_before_training(
    repository: Repository, server: FakeServer, exported: Path, persona: Persona
) -> None:
    before = list(repository.local.glob("runs/*"))
    server.away = True
    with pytest.raises(ServerError, match="cannot be reached"):
        train_behavior(repository, job(repository), live=LiveOptions(server.url))
    server.away = False
    with pytest.raises(UsageError, match="at scale 0"):
        train_behavior(repository, job(repository), live=LiveOptions(server.url, scale=0.0))
    with pytest.raises(UsageError, match="no URL"):
        train_behavior(repository, job(repository), live=LiveOptions("ftp://x"))
    path = exported / Certificate.file_name
    own = path.read_bytes()
    path.write_bytes(own.replace(repository.config().base.fingerprint.encode(), b"0" * 64))
    with pytest.raises(IncompatibleError, match="serves the base 0000000000000000"):
        train_behavior(repository, job(repository), live=LiveOptions(server.url))
    path.write_bytes(own)
    assert [path for path in repository.local.glob("runs/*/job.json") if path.parent not in before] == []
    data = ("--data", "data/warm.jsonl", "--general", "data/general-warm.jsonl")
    code, _, err = persona("train", "warm", *data, "--live-keep", cwd=repository.root)
    assert code == 2 and "no server to publish to" in err
    code, _, err = persona("train", "warm", *data, "--live", server.url, "--auto", "2", cwd=repository.root)
    assert code == 2 and "--auto" in err
    code, _, err = persona("train", "warm", *data, "--live", "http://127.0.0.1:9", cwd=repository.root)
    assert code == 1 and "cannot be reached" in err


@pytest.mark.usefixtures("patient")
def test_the_command_tells_what_was_published(repository: Repository, server: FakeServer, persona: Persona) -> None:
    data = ("--data", "data/warm.jsonl", "--general", "data/general-warm.jsonl", "--examples", "40")
    more = ("--probe-rows", "0", "--no-preflight", "--live", server.url, "--live-every", "3")
    code, out, err = persona("train", "warm", *data, *more, cwd=repository.root)
    assert code == 0, err
    assert "live:warm:step-3" in out and "the server serves v2 again, as before the run" in out
    code, out, err = persona(
        "train", "warm", *data, *more, "--seed", "1", "--allow-repeats", "--json", cwd=repository.root
    )
    assert code == 0, err
    live = json.loads(out)["data"]["live"]
    assert live["after"] == "v2" and live["snapshots"][0]["label"] == "live:warm:step-3"


def test_the_way_back_survives_a_kill(repository: Repository, server: FakeServer, exported: Path) -> None:
    client = Client(server.url)
    found = find_earlier(repository, client)
    assert (found.label, found.folder, found.plugin) == ("v2", exported, True)
    # As a killed run leaves it: the server on a snapshot, the record beside that.
    snapshots = live_folder(repository) / "killed"
    shutil.copytree(exported, snapshots / "orpo-4")
    found.write(snapshots)
    server.folder = snapshots / "orpo-4"
    assert find_earlier(repository, client) == found
    (snapshots / Earlier.file_name).unlink()
    server.folder = repository.root  # no export at all
    with pytest.raises(PersonaError):
        find_earlier(repository, client)
