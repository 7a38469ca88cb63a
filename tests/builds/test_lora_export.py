from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.builds import lora_export
from personality.builds.adapter_check import TensorLoss, layer_losses
from personality.builds.export_folder import ExportRecord
from personality.builds.lora_export import LoraExport, export_lora
from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.manifests.atomic import leftovers
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError, UsageError
from personality.manifests.repository import Repository
from personality.model import load_model
from personality.versions.history import History
from tests.adapters import LINEAR, random_adapter, to_float32, using
from tests.conftest import fine_tuned, run_persona, tiny_checkpoint
from tests.steering_fixtures import steer


def composer(repository: Repository) -> Composer:
    return composer_of(repository, History(repository).head().personality)


def exported(repository: Repository, folder: Path, **options: Any) -> LoraExport:
    return export_lora(repository, History(repository).head(), folder, **options)


def changes_by_peft(base: Path, folder: Path) -> dict[str, Tensor]:
    """What PEFT adds to each weight when it merges the adapter."""
    from peft import PeftModel

    before = load_model(base)
    weights = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    merged = PeftModel.from_pretrained(before, str(folder)).merge_and_unload().state_dict()
    return {name: merged[name] - weights[name] for name in weights if not torch.equal(merged[name], weights[name])}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lora")
    base = to_float32(tiny_checkpoint("qwen3", root / "repository/base"))
    one = random_adapter(base, root / "one", rank=3, targets=(*LINEAR, "lm_head"), seed=1)
    two = random_adapter(base, root / "two", rank=5, targets=("q_proj", "down_proj"), seed=2)
    using(root / "repository", ("brisk", one, "--scale 0.6"), ("calm", two, "--scale -0.4 --layers 1-2"))
    return root / "repository"


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(template, tmp_path / "repository")))


def test_low_rank_vectors_add_up_exactly(repository: Repository, tmp_path: Path) -> None:
    result = exported(repository, tmp_path / "out")
    assert (result.rank, result.max_lora_rank) == (8, 8)
    assert result.exact
    own = composer(repository)
    found = changes_by_peft(repository.root / "base", tmp_path / "out")
    assert found.keys() == set(own.touched)
    for name, change in found.items():
        wanted = own.delta(name)
        assert float((change - wanted).norm() / wanted.norm()) < 1e-5  # PEFT adds it to a weight in float32
    assert result.agreement.agreement.greatest_difference < 1e-4
    assert result.agreement.agreement.greedy == 1
    assert result.agreement.divergence < 1e-9 < result.agreement.effect_divergence


def test_the_factors_alone_are_exact(repository: Repository, tmp_path: Path) -> None:
    """B A without a weight beside it that would hide small errors; smaller ranks are filled up with zeros."""
    exported(repository, tmp_path / "out")
    factors = load_file(tmp_path / "out/adapter_model.safetensors")
    own = composer(repository)
    for name in own.touched:
        module = "base_model.model." + name.removesuffix(".weight")
        a, b = factors[f"{module}.lora_A.weight"], factors[f"{module}.lora_B.weight"]
        assert a.dtype == b.dtype == torch.float32
        assert a.shape[0] == b.shape[1] == 8
        wanted = own.delta(name).double()
        assert float((b.double() @ a.double() - wanted).norm() / wanted.norm()) < 1e-6
    one_only = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    assert not bool(factors[one_only][3:].any())


def test_a_lower_rank_loses_the_least_possible(repository: Repository, tmp_path: Path) -> None:
    result = exported(repository, tmp_path / "out", rank=4)
    assert (result.rank, result.max_lora_rank) == (4, 8)
    own = composer(repository)
    for loss in result.losses:
        singular = torch.linalg.svdvals(own.delta(loss.name).double())
        assert loss.lost == pytest.approx(float(singular[4:].norm()), abs=1e-5 * loss.norm)
    assert not result.exact
    assert 0 < result.relative < 1
    assert 0 < result.agreement.divergence < result.agreement.effect_divergence
    layers = result.layers
    assert [layer.layer for layer in layers] == [0, 1, 2, None]
    assert layers[0].relative == layers[3].relative == 0  # one vector of rank 3 acts there
    assert layers[1].relative > 0.05
    assert layers[1].worst_relative >= layers[1].relative
    assert "layers.1" in layers[1].worst


def test_layers_are_weighted_by_what_changes_there() -> None:
    losses = [TensorLoss("model.layers.2.a", 4, 3.0, 0.0), TensorLoss("model.layers.2.b", 4, 4.0, 2.0)]
    (layer,) = layer_losses(losses)
    assert (layer.layer, layer.tensors) == (2, 2) and layer.relative == pytest.approx(0.4)
    assert (layer.worst, layer.worst_relative) == ("model.layers.2.b", 0.5)


def test_dense_and_low_rank_vectors_together(repository: Repository, tmp_path: Path) -> None:
    root = repository.root
    tuned = fine_tuned(root / "base", root / "tuned", only="mlp.down_proj")
    for command in (["import", "dry", str(tuned)], ["add", "dry", "--scale", "0.5"]):
        assert run_persona(*command, cwd=root)[0] == 0
    result = exported(repository, tmp_path / "out")
    assert result.rank == 32  # the smaller side of the dense tensors: nothing is cut off
    assert result.exact
    less = exported(repository, tmp_path / "out", rank=10, force=True)
    by_name = {loss.name: loss.relative for loss in less.losses}
    assert all((value > 0.01) == ("down_proj" in name) for name, value in by_name.items())


def test_ties_is_composed_whole_and_cut_down(repository: Repository, tmp_path: Path) -> None:
    assert run_persona("method", "ties", "--density", "0.4", cwd=repository.root)[0] == 0
    result = exported(repository, tmp_path / "out", rank=16)
    assert any("`ties` has no low rank" in note for note in result.notes)
    own = composer(repository)
    for loss in result.losses:
        singular = torch.linalg.svdvals(own.delta(loss.name).double())
        assert loss.lost == pytest.approx(float(singular[16:].norm()), abs=1e-5 * loss.norm)
    assert result.relative > 0.01


@pytest.mark.parametrize("rank", [0, 513, -1])
def test_a_rank_that_nobody_serves(repository: Repository, tmp_path: Path, rank: int) -> None:
    with pytest.raises(UsageError, match=f"rank 1 to 512, not {rank}"):
        exported(repository, tmp_path / "out", rank=rank)


def test_what_an_adapter_cannot_carry_is_refused_by_name(tmp_path: Path) -> None:
    base = tiny_checkpoint("llama-bias", tmp_path / "base")
    repository = using(tmp_path, ("polite", fine_tuned(base, tmp_path / "tuned"), "--scale 0.5"))
    with pytest.raises(IncompatibleError, match="cannot carry 29 of the 51 tensors that v2 changes") as caught:
        exported(repository, tmp_path / "out")
    for name in ("`model.embed_tokens.weight`", "`model.layers.*.input_layernorm.weight` (3)", "q_proj.bias` (3)"):
        assert name in caught.value.message
    assert "lm_head" not in caught.value.message
    assert "--to vllm" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("qwen3_moe", "`model.layers.*.mlp.experts.*.up_proj.weight` (12)"),
        ("qwen3_moe", "`model.layers.*.mlp.gate.weight` (3)"),
        ("qwen3_5", "`model.layers.*.linear_attn.conv1d.weight` (2)"),
    ],
)
def test_experts_routers_and_convolutions_are_refused(kind: str, tensor: str, tmp_path: Path) -> None:
    base = tiny_checkpoint(kind, tmp_path / "base")
    tuned = fine_tuned(base, tmp_path / "tuned", only=".mlp" if "moe" in kind else "conv1d")
    repository = using(tmp_path, ("polite", tuned, "--scale 0.5"))
    with pytest.raises(IncompatibleError, match="no linear layers") as caught:
        exported(repository, tmp_path / "out")
    assert tensor in caught.value.message


def test_an_output_head_where_vllm_takes_none(template: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(template / "base", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForCausalLM"]}))
    repository = using(tmp_path, ("polite", fine_tuned(base, tmp_path / "tuned", only="lm_head"), "--scale 0.5"))
    with pytest.raises(IncompatibleError, match="no adapter for the output head of Qwen2ForCausalLM: `lm_head"):
        exported(repository, tmp_path / "out")


def test_the_base_alone_has_nothing_to_carry(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="v1 changes no weights"):
        export_lora(repository, History(repository).find("v1"), tmp_path / "out")


def test_steering_is_refused_or_left_out_by_name(repository_copy: Path, tmp_path: Path) -> None:
    repository = Repository(repository_copy)
    base = repository_copy / "base"
    adapter = random_adapter(base, tmp_path / "one", rank=4, targets=("q_proj",))
    steer(repository, "candid", 1, torch.ones(96))
    for command in (
        ["import", "brisk", str(adapter)],
        ["add", "brisk", "--scale", "0.1"],
        ["add", "candid@1", "--scale", "0.1"],
    ):
        code, _, err = run_persona(*command, cwd=repository_copy)
        assert code == 0, err
    with pytest.raises(IncompatibleError, match=r"also steers \(candid@1\)") as caught:
        exported(repository, tmp_path / "out")
    assert "--without-steering" in caught.value.hint
    result = exported(repository, tmp_path / "out", without_steering=True)
    assert result.left_out == ("candid@1",)
    assert result.exact


def test_the_files_and_what_they_say(repository: Repository, tmp_path: Path) -> None:
    result = exported(repository, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "persona-export.json"}
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (8, 8, "LORA")
    assert "model.layers.2.mlp.down_proj" in config["target_modules"]
    assert len(config["target_modules"]) == len(result.losses)
    assert "--max-lora-rank 8" in (tmp_path / "out/README.md").read_text()
    where = f"{repository.root / 'base'} --enable-lora --max-lora-rank 8 --lora-modules v3={tmp_path / 'out'}"
    assert result.serve == f"vllm serve {where}"
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    exported(repository, tmp_path / "out", force=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    data = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert data["tensors"][0]["relative"] < 1e-6
    assert len(data["layers"]) == 4


def test_a_folder_in_the_way(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(PersonaError, match="is no export of this program for `lora`"):
        exported(repository, out, force=True)
    (out / "thesis.txt").unlink()
    exported(repository, out)
    with pytest.raises(PersonaError, match="holds an earlier export") as caught:
        exported(repository, out)
    assert "--force" in caught.value.hint
    (out / "notes.txt").write_text("mine")
    with pytest.raises(PersonaError, match=r"things of yours, such as notes\.txt"):
        exported(repository, out, force=True)
    assert ExportRecord.read(out / ExportRecord.file_name).facts["rank"] == 8


def test_an_adapter_that_is_read_as_something_else_is_not_kept(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor that changes between writing and reading, and a module that is not there."""
    real: Callable[..., None] = lora_export._write_config

    def damaged(folder: Path, *rest: Any) -> None:
        real(folder, *rest)
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)
        tensors[name] = tensors[name] * 1.01
        save_file(tensors, path)

    monkeypatch.setattr(lora_export, "_write_config", damaged)
    with pytest.raises(CorruptError, match=r"`model\.layers\.1\.mlp\.up_proj\.weight` is off by 1\.00%, not by 0\.00%"):
        exported(repository, tmp_path / "out")

    def forgotten(folder: Path, names: list[str], *rest: Any) -> None:
        real(folder, names[1:], *rest)

    monkeypatch.setattr(lora_export, "_write_config", forgotten)
    with pytest.raises(CorruptError, match="in one of the two only"):
        exported(repository, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("combination", "at_least"), [("linear", 0.7), ("ties", 0.7), ("svd", 0.0), ("cat", 0.0)])
def test_peft_and_the_exact_sum(combination: str, at_least: float, tmp_path: Path) -> None:
    """PEFT's `add_weighted_adapter` adds factors up in `linear` and `ties`, Σ√s A · Σ√s B, which is no sum of products:
    on random adapters it is off by about as much as there is. Its `svd` of the whole matrix is no better than ours of
    the factors at the same rank; `cat` is exact, at the sum of the ranks.
    """
    from peft import PeftModel
    from peft.tuners.lora import Linear

    base = tiny_checkpoint("llama", tmp_path / "base")
    folders = [random_adapter(base, tmp_path / str(seed), rank=6, seed=seed) for seed in (1, 2)]
    scales = [0.7, 0.5]
    model = PeftModel.from_pretrained(load_model(base), str(folders[0]), adapter_name="0")
    model.load_adapter(str(folders[1]), adapter_name="1")
    more = {"density": 0.5} if combination == "ties" else {}
    model.add_weighted_adapter(["0", "1"], scales, "sum", combination_type=combination, **more)
    repository = using(
        tmp_path, *((name, folder, f"--scale {s}") for name, folder, s in zip("ab", folders, scales, strict=True))
    )
    own = composer(repository)
    ours = {loss.name: loss for loss in exported(repository, tmp_path / "out", rank=6).losses}
    norm = off = lost = 0.0
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, Linear):
            exact = own.delta(f"{name}.weight").double()
            off += float((layer.get_delta_weight("sum").double() - exact).norm()) ** 2
            norm += float(exact.norm()) ** 2
            lost += ours[f"{name}.weight"].lost ** 2
    relative = (off / norm) ** 0.5
    assert at_least <= relative < 1.6
    if combination == "svd":
        assert relative == pytest.approx((lost / norm) ** 0.5, rel=1e-3)
    elif combination == "cat":
        assert relative < 1e-5
    else:
        assert (lost / norm) ** 0.5 < relative / 2
