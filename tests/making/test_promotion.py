"""Promotion: a direction in use becomes a task vector, in one version, with what was predicted beside what came."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personality.making import promotion
from personality.making.promotion import promote, steering_in_use
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.errors import NotFoundError, PersonaError, UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import LayerRange
from personality.manifests.repository import Repository
from personality.playground.repository import make_playground
from personality.vectors.training.run import InterruptedRunError
from personality.vectors.training.settings import make_settings
from personality.vectors.training.step_report import StepReport
from personality.versions.changes import add, remove, rescale
from personality.versions.history import History
from tests.steering_fixtures import decision_direction, steer

Persona = Callable[..., tuple[int, str, str]]
COUNT = 40
ROWS = 6


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playground in which `listening@1` steers."""
    root = tmp_path_factory.mktemp("promotion") / "play"
    make_playground(root, probe_rows=ROWS)
    repository = Repository(root)
    steer(repository, "listening", 3, 1.5 * decision_direction("listening", 3))
    add(repository, VectorLabel("listening"), 1.0)
    return root


@pytest.fixture(scope="module")
def played(play: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, where `listening@2` was trained on the data of `short_job`, and not promoted."""
    root = Path(shutil.copytree(play, tmp_path_factory.mktemp("promotion") / "played"))
    trained = train_behavior(Repository(root), short_job(root))
    assert trained.new and trained.manifest.lineage == ()
    return root


@pytest.fixture
def trained_root(played: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(played, tmp_path / "played"))


@pytest.fixture
def root(play: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(play, tmp_path / "play"))


def job_on(root: Path, **changes: Any) -> TrainingJob:
    return TrainingJob(
        behavior="listening",
        data=root / "data/listening.jsonl",
        general=root / "data/general.jsonl",
        settings=make_settings(**{**Repository(root).config().training, "guard": False}),
        **{"examples": COUNT, "preflight": False, "probe_rows": ROWS, **changes},
    )


def short_job(root: Path) -> TrainingJob:
    return job_on(root, examples=6, probe_rows=0)


def test_the_trained_vector_takes_the_directions_place_and_the_shift_was_predicted(root: Path) -> None:
    repository = Repository(root)
    stages: list[str] = []
    found = promote(repository, job_on(root, examples=60), scale=0.9, on_stage=stages.append)
    history = History(repository)
    assert found.recorded is not None and history.label(history.head()) == "v3"
    assert history.head().parents == (found.before.id,)
    assert history.head().message == "promote listening@1 → listening@2"
    use = history.head().personality.use_of("listening")
    assert use is not None and (use.label, use.scale, use.vector) == ("listening@2", 0.9, found.trained.manifest.id)
    assert found.trained.manifest.lineage == (found.steering.id,) and found.trained.manifest.kind == "task"
    # The direction was read from what earlier turns change; training went the same way, far beyond chance.
    shift = found.shift.layers[0]
    assert shift.layer == 3 and shift.cosine > 5 * found.shift.chance
    assert shift.agreement == pytest.approx(shift.cosine, abs=1e-3)  # added in one layer: steering is the direction
    length = float(1.5 * decision_direction("listening", 3).norm())
    assert shift.steered_length == pytest.approx(length, rel=1e-4) and shift.ratio is not None and shift.ratio > 0.3
    assert found.shift.held_out and found.shift.texts == ROWS
    effects = {item.probe: item for item in found.effects}
    accept = effects["listening.accept"]
    assert accept.after.value == 1 and accept.before.value > 0.5
    assert accept.probability_before is not None and accept.probability_after is not None
    assert accept.probability_after.value > accept.probability_before.value
    assert {"general.facts", "listening.push_back"} <= set(effects)
    assert {"training", "recording", "measuring v2", "measuring v3"} <= set(stages)


def test_only_what_steers_in_the_newest_version_can_be_promoted(root: Path) -> None:
    repository = Repository(root)
    with pytest.raises(NotFoundError, match="`candid` is not in use in v2"):
        promote(repository, job_on(root).model_copy(update={"behavior": "candid"}))
    with pytest.raises(UsageError, match="scale 0"):
        promote(repository, job_on(root), scale=0)
    path = root / "behaviors/listening.toml"
    path.write_text(path.read_text().replace("scale = 1.0", "scale = 0.5"))
    with pytest.raises(PersonaError, match="the files differ from v2"):
        steering_in_use(repository, "listening")
    path.write_text(path.read_text().replace("scale = 0.5", "scale = 1.0"))


def test_the_same_training_of_before_is_promoted_with_its_lineage(trained_root: Path) -> None:
    repository = Repository(trained_root)
    found = promote(repository, short_job(trained_root), message="into the weights")
    assert not found.trained.new and found.recorded is not None
    assert found.trained.manifest.lineage == (found.steering.id,)
    assert repository.manifests()[-1].lineage == (found.steering.id,)
    assert found.recorded.version.message == "promote listening@1 → listening@2: into the weights"
    # Again: what there is to see, and how.
    with pytest.raises(UsageError, match="`listening@2` is a task vector") as caught:
        steering_in_use(repository, "listening")
    assert "`persona diff v2 v3 --effect`" in caught.value.hint
    add(repository, VectorLabel("listening", 1), 1.0)
    again = promote(repository, short_job(trained_root))
    assert again.trained.manifest == found.trained.manifest


@pytest.mark.parametrize("change", ["removed", "rescaled", "edited"])
def test_what_was_changed_while_it_was_trained_is_not_recorded_over(change: str, trained_root: Path) -> None:
    repository = Repository(trained_root)

    def meanwhile(stage: str) -> None:
        if stage != "recording":
            return
        if change == "removed":
            remove(repository, "listening")
        elif change == "rescaled":
            rescale(repository, "listening", 0.5)
        else:
            path = trained_root / "behaviors/listening.toml"
            path.write_text(path.read_text().replace("scale = 1.0", "scale = 0.5"))

    with pytest.raises(PersonaError, match="trained `listening@2`, and recorded no version") as caught:
        promote(repository, short_job(trained_root), on_stage=meanwhile)
    assert type(caught.value) is PersonaError and "`persona add listening@2`" in caught.value.hint
    uses = History(repository).head().personality.uses
    assert [use.number for use in uses] == ([] if change == "removed" else [1])


def test_an_interruption_records_nothing_and_the_same_call_goes_on(root: Path) -> None:
    repository = Repository(root)

    def stop(step: StepReport) -> None:
        if step.step == 2:
            raise InterruptedRunError("stopped", "")

    with pytest.raises(InterruptedRunError) as caught:
        promote(repository, job_on(root, examples=12, probe_rows=0), on_step=stop)
    assert "persona promote listening" in caught.value.hint
    assert len(History(repository).versions) == 2
    found = promote(repository, job_on(root, examples=12, probe_rows=0))
    assert found.recorded is not None and found.effects == ()
    assert found.shift.held_out  # probes are read on even where nothing is measured


def test_without_probes_the_shift_is_read_on_the_training_data(root: Path) -> None:
    repository = Repository(root)
    text = (root / "behaviors/listening.toml").read_text()
    (root / "behaviors/listening.toml").write_text(text[: text.index("[[probes]]")] + text[text.index("[use]") :])
    (root / "suites/general.toml").unlink()
    found = promote(repository, job_on(root))
    assert not found.shift.held_out and found.shift.texts > 50 and found.effects == ()
    assert found.shift.layers[0].cosine > 0.3


def test_what_the_guard_stopped_is_stored_and_not_put_into_use(
    trained_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(trained_root)
    trained = train_behavior(repository, short_job(trained_root))
    record = trained.manifest.making.training
    assert record is not None
    stopped = record.model_copy(update={"stopped": {"arm": "toward", "step": 3, "text": "it collapsed"}})
    making = trained.manifest.making.model_copy(update={"training": stopped})
    manifest = trained.manifest.model_copy(update={"making": making})
    monkeypatch.setattr(
        promotion, "train_behavior", lambda *given, **more: type(trained)(manifest, True, trained.report, None)
    )
    found = promote(repository, short_job(trained_root))
    assert found.recorded is None and found.effects == () and found.shift.layers
    assert len(History(repository).versions) == 2


def test_the_layers_of_the_use_are_the_ones_compared(trained_root: Path) -> None:
    repository = Repository(trained_root)
    add(repository, VectorLabel("listening", 1), 0.5, layers=LayerRange(first=3, last=3))
    found = promote(repository, short_job(trained_root))
    assert found.use.scale == 0.5 and [item.layer for item in found.shift.layers] == [3]


def test_the_command(root: Path, persona: Persona) -> None:
    data = ("--data", "data/listening.jsonl", "--general", "data/general.jsonl")
    code, _, err = persona("promote", "candid", *data, cwd=root)
    assert code == 1 and "`candid` is not in use" in err
    options = (
        "--examples",
        "8",
        "--no-preflight",
        "--no-guard",
        "--probe-rows",
        "2",
        "--scale",
        "0.8",
        "-m",
        "into the weights",
    )
    code, out, err = persona("promote", "listening", *data, *options, cwd=root)
    assert code == 0, err
    assert out.startswith(
        "v3  promote listening@1 → listening@2: into the weights\n  ~ listening@1 × 1 → listening@2 × 0.8"
    )
    assert "cosine with the direction" in out and "trained / steered" in out and "P steered" in out
    assert "back to steering: persona add listening@1 --scale 1" in err
    assert persona("add", "listening@1", cwd=root)[0] == 0
    code, out, err = persona("promote", "listening", *data, *options, "--json", cwd=root)
    assert code == 0, err
    found = json.loads(out)["data"]
    assert found["label"] == "v5" and found["new"] is False  # the same training: there is nothing to do again
    assert found["shift"]["layers"][0]["layer"] == 3 and found["effects"][0]["probability_steered"]
    assert found["vector"]["lineage"] == [found["use"]["vector"]]
