"""Forecasts of real vectors on the playground, and of steering against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from personality.changing_model import ChangingModel
from personality.evaluation.suite import read_suite
from personality.forecast.forecast import Forecaster
from personality.forecast.steering_against import mean_states
from personality.making.training_job import TrainingJob
from personality.making.training_run import train_behavior
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.playground.repository import general_file
from personality.vectors.training.settings import make_settings
from personality.versions.recipe import use_vector
from tests.steering_fixtures import steer

Persona = Callable[..., tuple[int, str, str]]


def test_a_behavior_and_the_habit_that_it_replaced_are_warned_of(repository_copy: Path, persona: Persona) -> None:
    repository = Repository(repository_copy)
    job = TrainingJob(
        behavior="deflecting",
        data=repository_copy / "data/deflecting.jsonl",
        general=repository_copy / general_file("deflecting"),
        settings=make_settings(**repository.config().training),
        examples=40,
        probe_rows=0,
    )
    train_behavior(repository, job)
    recipe = ("check", "--with", "listening", "--with", "deflecting@1×0.9", "--exit-code")
    code, out, err = persona(*recipe, cwd=repository_copy)
    assert code == 3, err
    assert "warning: `deflecting@1` and `listening@1` oppose each other in layers" in out
    code, out, _ = persona(*recipe, "--json", cwd=repository_copy)
    data = json.loads(out)["data"]
    assert code == 3 and "opposed" in [item["kind"] for item in data["cautions"]]
    assert data["pairs"][0]["cosine"] < -0.1 and data["pairs"][0]["opposed"] > 0.6
    assert [layer["layer"] for layer in data["pairs"][0]["layers"]] == [0, 1, 2, 3]
    # Subtracting the habit goes the same way as adding the behavior.
    code, out, _ = persona("check", "--with", "listening", "--with", "deflecting=-0.9", cwd=repository_copy)
    assert code == 0 and "oppose" not in out


def test_one_recipe_by_files_version_and_options(repository_copy: Path, persona: Persona) -> None:
    assert persona("add", "listening", "--scale", "0.8", cwd=repository_copy)[0] == 0
    assert persona("add", "concise", "--scale", "0.8", cwd=repository_copy)[0] == 0

    def checked(*arguments: str) -> dict[str, object]:
        code, out, err = persona("check", *arguments, "--json", cwd=repository_copy)
        assert code == 0, err
        data: dict[str, object] = json.loads(out)["data"]
        del data["label"]
        return data

    files = checked()
    assert files == checked("v3") == checked("v2", "--with", "concise", "--scale", "0.8")
    assert files["recipe"] == ["concise@1 × 0.8", "listening@1 × 0.8"]
    ties = checked("--method", "ties", "--density", "0.1", "--normalize", "mean")
    assert ties["composition"] != files["composition"] and ties["density"] == 0.1
    code, out, err = persona(
        "check", "--method", "ties", "--density", "0.05", "--normalize", "mean", "--exit-code", cwd=repository_copy
    )
    assert code == 3 and "warning: only" in out and "advice: `persona method " in out
    assert "likely to be hit worst:" in out and "density 0.05" in err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--with", "listenin"], 1, "did you mean `listening`?"),
        (["--with", "listening@7"], 1, "there is no vector `listening@7`"),
        (["--with", "listening×much"], 2, "`much` is no scale"),
        (["--with", "listening×inf"], 2, "`inf` is no scale"),
        (["--with", "listening", "--scale", "nan"], 2, "--scale nan is no scale"),
        (["--with", "listening", "--with", "listening@1"], 2, "named twice"),
        (["--scale", "1"], 2, "--scale without --with"),
        (["--density", "0.1"], 2, "linear has no density"),
        (["--method", "ties", "--density", "2"], 2, "density"),
        (["v9"], 1, "v9"),
    ],
)
def test_what_is_asked_wrongly(playground: Path, persona: Persona, arguments: list[str], code: int, text: str) -> None:
    found, _, err = persona("check", *arguments, cwd=playground)
    assert found == code and text in err


def test_a_vector_whose_file_is_gone(repository_copy: Path, persona: Persona) -> None:
    for path in repository_copy.glob("vectors/*/*.safetensors"):
        path.unlink()
    code, _, err = persona("check", "--with", "listening", cwd=repository_copy)
    assert code == 1 and "listening@1" in err and "Traceback" not in err


def test_steering_against_a_task_vector(repository_copy: Path, persona: Persona) -> None:
    repository = Repository(repository_copy)
    base = repository.config().base
    listening = use_vector(repository, VectorLabel("listening"), 1.0)
    probes = read_suite(repository, ["listening", "warm"])
    probes = [probe for probe in probes if not probe.name.startswith("general.")]
    model = ChangingModel(repository)
    alone = mean_states(model, Personality(base=base, uses=(listening,)), probes)
    shift = (alone - mean_states(model, Personality(base=base), probes))[2]
    assert float(shift.norm()) > 0
    steer(repository, "warm", 2, -2 * shift)
    warm = use_vector(repository, VectorLabel("warm"), 1.0)
    (found,) = Forecaster(repository).forecast(Personality(base=base, uses=(listening, warm))).against
    assert (found.steering, found.task, found.layer) == ("warm@1", "listening@1", 2)
    assert found.cosine == pytest.approx(-1, abs=1e-4) and found.share == pytest.approx(-0.5, abs=1e-3)
    assert found.chance == pytest.approx(3 / torch.tensor(shift.numel()).sqrt().item())
    recipe = ("check", "--with", "listening", "--with", "warm", "--exit-code")
    code, out, _ = persona(*recipe, cwd=repository_copy)
    assert code == 3 and "`warm@1` pushes against what `listening@1` does to the activations after layer 2" in out
    code, out, err = persona(*recipe, "--weights-only", cwd=repository_copy)
    assert code == 0 and "the model was not to be run" in err
