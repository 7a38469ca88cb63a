"""Exporting a version that steers: baked in and compared, or refused with the reason, or left out on demand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality import model
from personality.baking.bake import check_proven
from personality.builds.build import BuildRecord, build
from personality.builds.comparison import agreement, log_probabilities, probe_tokens
from personality.builds.export import export
from personality.builds.verify import verify_folder
from personality.composition.opening import composer_of
from personality.making.vector_records import record_vector
from personality.manifests.atomic import leftovers
from personality.manifests.errors import CorruptError, IncompatibleError
from personality.manifests.manifest import Making
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition, LayerRange, Personality
from personality.manifests.repository import Repository
from personality.manifests.steering_record import Positions, Proof, SteeringRecord
from personality.manifests.version import Version
from personality.model import load_composed
from personality.vectors.steering.steering_file import store_steering
from personality.vectors.steering.steering_vector import SteeringVector
from personality.versions.changes import add
from personality.versions.history import History
from personality.versions.recipe import use_vector
from tests.conftest import fine_tuned, run_persona
from tests.tiny_chat import chat_base

PROVEN = Proof(proven=True, placebos=8)


def steer(
    repository: Repository, behavior: str, *, positions: Positions = "all", proof: Proof | None = PROVEN, seed: int = 0
) -> None:
    """Store a steering vector of random directions that acts in layers 1 and 2, as if it had been extracted."""
    generator = torch.Generator().manual_seed(seed)
    vector = SteeringVector(
        tensors={layer: torch.randn(32, generator=generator) for layer in range(3)},
        positions=positions,
        mode="add",
        layers=(1, 2),
        joint=0.7,
    )
    record = SteeringRecord(positions=positions, mode="add", layers=(1, 2), proof=proof)
    stored = store_steering(repository, vector)
    making = Making(how="extract")
    base = repository.config().base
    with repository.writing():
        record_vector(repository, behavior, base, stored, making, command="extract", steering=record)


@pytest.fixture(scope="module", params=["llama", "qwen3-tied"])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a task vector in use and two proven steering vectors beside it."""
    root = tmp_path_factory.mktemp("steering") / "repository"
    base = chat_base(request.param, root / "base")
    tuned = fine_tuned(base, root.parent / "tuned")
    for arguments in (
        ["init", "--base", "base"],
        ["import", "polite", str(tuned)],
        ["add", "polite", "--scale", "0.5"],
    ):
        code, _, err = run_persona(*arguments, cwd=root)
        assert code == 0, err
    repository = Repository(root)
    steer(repository, "candid")
    steer(repository, "warm", seed=1)
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(template, tmp_path / "repository")))


def steering_version(repository: Repository) -> Version:
    add(repository, VectorLabel("candid"), 0.5)
    add(repository, VectorLabel("warm"), -0.25, layers=LayerRange(first=1, last=2))
    return History(repository).head()


def predictions(folder: Path) -> torch.Tensor:
    """As any user of transformers sees them."""
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return log_probabilities(loaded, probe_tokens(272))


def hooked(repository: Repository, version: Version) -> torch.Tensor:
    return log_probabilities(load_composed(composer_of(repository, version.personality)), probe_tokens(272))


def test_an_export_does_what_the_version_does(repository: Repository, tmp_path: Path) -> None:
    version = steering_version(repository)
    out = tmp_path / "out"
    result = export(repository, version, "vllm", out, bake_unproven=True, shard_bytes=20_000)
    assert result.baked is not None
    assert result.baked.effect > 0.1
    assert result.agreement is not None
    assert result.agreement.greatest_difference < 1e-3 * result.baked.effect
    found, wanted = predictions(out), hooked(repository, version)
    assert agreement(found, wanted).greatest_difference == pytest.approx(result.agreement.greatest_difference, abs=1e-5)
    # Weights are the composed ones where steering has no part.
    composer = composer_of(repository, version.personality)
    tensors = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    for name in composer.specs:
        if ".mlp." not in name:
            assert torch.equal(tensors[name], composer.tensor(name)), name
    assert verify_folder(repository, version, out).status == "ok"
    bare = History(repository).find("v2")
    assert verify_folder(repository, bare, out).status == "different"


def test_what_the_folder_says_of_it(repository: Repository, tmp_path: Path) -> None:
    version = steering_version(repository)
    arguments = ["export", version.label, "--bake-unproven"]
    code, stdout, err = run_persona(*arguments, str(tmp_path / "out"), cwd=repository.root)
    assert code == 0, err
    record = BuildRecord.read(tmp_path / "out" / BuildRecord.file_name)
    assert record.steering is not None
    route = record.steering.route
    assert route == ("mlp-bias" if "llama" in (repository.root / "base/config.json").read_text() else "swiglu-widening")
    assert record.steering.uses == ("candid@1 × 0.5, layers 1-2", "warm@1 × -0.25, layers 1-2")
    card = (tmp_path / "out/README.md").read_text()
    assert f"## Steering\n\nBaked into these weights by the route `{route}`, always on" in card
    assert "| candid@1 | 0.5 | all | extract |" in card
    assert f"baked in by the route `{route}`" in stdout
    assert "steering itself changes up to" in stdout
    code, stdout, _ = run_persona(*arguments, str(tmp_path / "again"), "--json", cwd=repository.root)
    data = json.loads(stdout)["data"]
    assert data["steering"]["route"] == route
    assert data["steering_effect"] > 100 * data["agreement"]["greatest_difference"]


def test_left_out_on_demand_and_told_loudly(repository: Repository, tmp_path: Path) -> None:
    version = steering_version(repository)
    arguments = ["export", version.label, str(tmp_path / "out"), "--without-steering"]
    code, _, err = run_persona(*arguments, cwd=repository.root)
    assert code == 0, err
    told = " ".join(err.split())
    assert "warning: candid@1 × 0.5, layers 1-2, warm@1 × -0.25, layers 1-2: left out" in told
    assert "**Left out: candid@1 × 0.5, layers 1-2; warm@1" in (tmp_path / "out/README.md").read_text()
    plain = History(repository).find("v2")
    same = agreement(predictions(tmp_path / "out"), hooked(repository, plain))
    assert same.greatest_difference < 1e-5
    found = verify_folder(repository, version, tmp_path / "out")
    assert found.status == "ok"
    assert "its steering vectors are not in it" in found.detail
    assert (tmp_path / "out/config.json").read_bytes() == (repository.root / "base/config.json").read_bytes()


def test_a_build_is_the_weights_alone_and_says_so(repository: Repository) -> None:
    version = steering_version(repository)
    record = BuildRecord.read(build(repository, version).path / BuildRecord.file_name)
    assert record.steering is not None
    assert not record.steering.baked
    assert (
        BuildRecord.read(build(repository, History(repository).find("v2")).path / BuildRecord.file_name).steering
        is None
    )


def test_what_is_not_proven_is_baked_only_on_demand(repository: Repository, tmp_path: Path) -> None:
    steer(repository, "bold", proof=Proof(proven=False, reasons=("placebos do as much",)), seed=2)
    steer(repository, "terse", proof=None, seed=3)
    for behavior, reason in (("bold", "placebos do as much"), ("terse", "nothing was measured")):
        add(repository, VectorLabel(behavior), 0.5)
        version = History(repository).head()
        with pytest.raises(IncompatibleError, match=rf"`{behavior}@1` is not proven \({reason}\)") as caught:
            export(repository, version, "hf", tmp_path / "out")
        assert "--bake-unproven" in caught.value.hint
        assert not (tmp_path / "out").exists()
        assert export(repository, version, "hf", tmp_path / behavior, bake_unproven=True).baked is not None
        assert run_persona("rm", behavior, cwd=repository.root)[0] == 0


def test_what_was_proven_in_other_layers_is_not_proven(repository: Repository, tmp_path: Path) -> None:
    add(repository, VectorLabel("candid"), 0.5, layers=LayerRange(first=0, last=1))
    with pytest.raises(IncompatibleError, match="it was proven in layer 1-2 and is used in 0-1"):
        export(repository, History(repository).head(), "hf", tmp_path / "out")


@pytest.mark.parametrize("scale", [-0.25, 1.1])
def test_what_was_proven_at_another_scale_is_not_proven(repository: Repository, tmp_path: Path, scale: float) -> None:
    add(repository, VectorLabel("candid"), scale)
    with pytest.raises(IncompatibleError, match=f"it was proven at scale 1 and is used at {scale}"):
        export(repository, History(repository).head(), "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_orthogonal_composition_turns_is_not_proven(repository: Repository) -> None:
    base = repository.config().base

    def personality(*behaviors: str) -> Personality:
        uses = tuple(use_vector(repository, VectorLabel(name), 1.04) for name in behaviors)
        return Personality(base=base, composition=Composition(steering="orthogonal"), uses=uses)

    check_proven(repository, personality("candid"))  # alone it is not turned
    both = personality("candid", "warm")
    with pytest.raises(IncompatibleError, match="`steering = orthogonal` turns it in layer 1-2"):
        check_proven(repository, both)
    check_proven(repository, both.model_copy(update={"composition": Composition()}))


def test_a_baked_folder_of_a_version_that_can_be_is_another_than_one_that_cannot(
    repository: Repository, tmp_path: Path
) -> None:
    add(repository, VectorLabel("candid"), 0.5)
    export(repository, History(repository).head(), "hf", tmp_path / "out")
    steer(repository, "brief", positions="decision", seed=4)
    add(repository, VectorLabel("brief"), 0.5)
    version = History(repository).head()
    code, stdout, err = run_persona("verify", version.label, str(tmp_path / "out"), "--json", cwd=repository.root)
    assert code == 3, err
    (finding,) = json.loads(stdout)["data"]["findings"]
    assert finding["status"] == "different"
    assert "`brief@1` cannot be baked" in finding["detail"]


def test_what_does_not_act_everywhere_is_refused(repository: Repository, tmp_path: Path) -> None:
    steer(repository, "brief", positions="decision", seed=4)
    add(repository, VectorLabel("candid"), 0.5)
    add(repository, VectorLabel("brief"), 0.5)
    version = History(repository).head()
    arguments = ["export", version.label, str(tmp_path / "out"), "--to", "vllm"]
    code, _, err = run_persona(*arguments, cwd=repository.root)
    assert code == 1
    told = " ".join(err.split())
    assert "`brief@1` cannot be baked: it acts only at the last token of the prompt (`decision`)" in told
    assert "persona promote brief" in told
    assert not (tmp_path / "out").exists()
    assert run_persona(*arguments, "--without-steering", cwd=repository.root)[0] == 0


def test_an_export_whose_vectors_are_lost_is_not_kept(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that reads the folder and leaves out what baking wrote into it."""
    version = steering_version(repository)
    real = model.load_model

    def forgetful(folder: Path) -> Any:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("down_proj.bias"):
                tensor.zero_()
            elif name.endswith("down_proj.weight"):
                tensor[:, 48:] = 0
        save_file(tensors, path, metadata={"format": "pt"})
        return real(folder)

    monkeypatch.setattr("personality.builds.reloaded.load_model", forgetful)
    with pytest.raises(
        CorruptError, match="does not do what the hooks do: log-probabilities differ by up to"
    ) as caught:
        export(repository, version, "hf", tmp_path / "out", bake_unproven=True)
    assert "nothing was kept" in caught.value.hint
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_an_engine_that_would_leave_biases_out_is_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    from tests.baking.architectures import config_of

    torch.manual_seed(0)
    small = transformers.AutoModelForCausalLM.from_config(config_of("minicpm3"))
    small.to(torch.bfloat16).save_pretrained(tmp_path / "repository/base")
    assert run_persona("init", "--base", "base", cwd=tmp_path / "repository")[0] == 0
    repository = Repository(tmp_path / "repository")
    steer(repository, "candid")
    add(repository, VectorLabel("candid"), 0.5)
    version = History(repository).head()
    with pytest.raises(IncompatibleError, match="vllm would leave the baked vectors out without a word"):
        export(repository, version, "vllm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(repository, version, "hf", tmp_path / "out").baked is not None
