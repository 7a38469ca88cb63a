from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from personality.builds import mergekit_export
from personality.builds.mergekit_export import RECIPE, MergekitExport, export_mergekit
from personality.builds.mergekit_recipe import base_reference, description, recipe_of
from personality.composition.opening import composer_of
from personality.manifests.atomic import leftovers
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.manifests.personality_record import Composition, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.versions.history import History
from tests.adapters import random_adapter, using
from tests.conftest import fine_tuned, run_persona, tiny_checkpoint
from tests.steering_fixtures import steer


def exported(repository: Repository, folder: Path, **options: Any) -> MergekitExport:
    return export_mergekit(repository, History(repository).head(), folder, **options)


def uses(*scales: float, density: float | None = None) -> list[Use]:
    return [
        Use(behavior=name, number=1, vector=name * 64, scale=scale, density=density)
        for name, scale in zip("abc", scales, strict=False)
    ]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 base with a dense and a low-rank vector, one of them in layers 1-2 only."""
    root = tmp_path_factory.mktemp("mergekit") / "repository"
    base = tiny_checkpoint("qwen3", root / "base")
    tuned = fine_tuned(base, root.parent / "tuned")
    adapter = random_adapter(base, root.parent / "one", rank=3)
    using(root, ("brisk", tuned, "--scale 0.7"), ("calm", adapter, "--scale -0.4 --layers 1-2 --density 0.5"))
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(template, tmp_path / "repository")))


def test_what_a_user_merges_is_the_version(repository: Repository, tmp_path: Path) -> None:
    """mergekit, run by hand in the folder after it was moved, makes the composed weights bit for bit."""
    result = exported(repository, tmp_path / "out")
    assert result.agreement.equal == 1
    assert sorted(result.models.values()) == ["models/brisk-1", "models/calm-1"]
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", RECIPE, "merged"]
    done = subprocess.run(command, cwd=moved, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    composer = composer_of(repository, History(repository).head().personality)
    merged = Checkpoint(moved / "merged")
    assert merged.specs.keys() == composer.specs.keys()
    for name in merged.specs:
        assert merged.tensor(name).dtype == torch.bfloat16
        assert torch.equal(merged.tensor(name), composer.tensor(name)), name


def test_ties(repository: Repository, tmp_path: Path) -> None:
    method = ["method", "ties", "--trim-scope", "tensor", "--density", "0.3", "--lambda", "1.5"]
    assert run_persona(*method, cwd=repository.root)[0] == 0
    result = exported(repository, tmp_path / "out")
    recipe = yaml.safe_load((tmp_path / "out" / RECIPE).read_text())
    assert recipe["merge_method"] == "ties"
    assert recipe["parameters"] == {"normalize": False, "lambda": 1.5}
    found = {model["model"]: model["parameters"] for model in recipe["models"]}
    assert found == {
        "./models/brisk-1": {"weight": 0.7, "density": 0.3},
        "./models/calm-1": {"weight": -0.4, "density": 0.5},
    }
    # Where bfloat16 differences of equal size stand at the threshold, mergekit keeps some of them, ours all.
    assert result.agreement.outside < 0.02
    assert result.agreement.equal > 0.98


def test_a_model_holds_one_vector_whole_and_stays(repository: Repository, tmp_path: Path) -> None:
    """Scale, density and the other vector are the recipe's; a layer range is the model's."""
    exported(repository, tmp_path / "out")
    base = load_file(repository.root / "base/model.safetensors")
    tuned = load_file(tmp_path / "out/models/calm-1/model.safetensors")
    assert tuned.keys() == base.keys()
    moved = {name for name in base if not torch.equal(base[name].float(), tuned[name].float())}
    assert moved
    assert all(".layers.1." in name or ".layers.2." in name for name in moved)
    assert {tuned[name].dtype for name in moved} == {torch.float32}
    assert all(tuned[name].dtype == torch.bfloat16 for name in base.keys() - moved)
    with pytest.raises(PersonaError, match="holds an earlier export"):
        exported(repository, tmp_path / "out")
    (tmp_path / "out/merged").mkdir()
    (tmp_path / "out/merged/config.json").write_text("{}")
    with pytest.raises(PersonaError, match=r"things of yours, such as merged/config\.json"):
        exported(repository, tmp_path / "out", force=True)


@pytest.mark.parametrize(
    ("settings", "scales", "expected"),
    [
        ({"method": "linear"}, (0.5, -2.0), ("task_arithmetic", False, 1.0, (0.5, -2.0), (1.0, 1.0))),
        ({"density": 0.3}, (0.5, 1.0), ("ties", False, 1.0, (0.5, 1.0), (0.3, 0.3))),
        ({"normalize": "weighted", "lam": 0.5}, (0.5, 1.0), ("ties", True, 0.5, (0.5, 1.0), (0.2, 0.2))),
        ({"normalize": "mean", "lam": 2.0}, (0.5, 0.5), ("ties", True, 1.0, (1.0, 1.0), (0.2, 0.2))),
        ({"normalize": "mean"}, (-0.5, -0.5), ("ties", True, -0.5, (1.0, 1.0), (0.2, 0.2))),
        ({"trim_scope": "vector", "density": 1.0}, (0.5,), ("ties", False, 1.0, (0.5,), (1.0,))),
    ],
)
def test_recipes(settings: dict[str, Any], scales: tuple[float, ...], expected: tuple[Any, ...]) -> None:
    composition = Composition(**{"method": "ties", "trim_scope": "tensor", **settings})
    found = recipe_of(composition, uses(*scales))
    weights, densities = ([each.get(name, 1.0) for each in found.each] for name in ("weight", "density"))
    shared = found.shared["normalize"], found.shared["lambda"]
    assert (found.method, *shared, tuple(weights), tuple(densities)) == expected


@pytest.mark.parametrize(
    ("settings", "scales", "reason"),
    [
        ({"trim_scope": "vector"}, (0.5, 1.0), "trims each vector as a whole"),
        ({"trim_scope": "vector", "density": 1.0}, (0.5, 1.0), "trims each vector as a whole"),
        ({"normalize": "weighted"}, (0.5, -1.0), "turns the sign"),
        ({"normalize": "mean"}, (0.5, 1.0), "for equal scales only, here they are 0.5, 1"),
    ],
)
def test_recipes_that_mergekit_does_not_have(settings: dict[str, Any], scales: tuple[float, ...], reason: str) -> None:
    composition = Composition(**{"method": "ties", "trim_scope": "tensor", **settings})
    own = 0.5 if settings.get("density") == 1.0 else None  # a use's own density trims too
    with pytest.raises(IncompatibleError, match=reason) as caught:
        recipe_of(composition, uses(*scales, density=own))
    assert "--to vllm" in caught.value.hint


SLOW = pytest.mark.slow  # a whole run of mergekit each


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        ({"method": "slerp"}, "0.7", ""),
        pytest.param({"method": "breadcrumbs_ties", "parameters": {"density": 0.3}}, "0.7", "-0.4", marks=SLOW),
        pytest.param({"method": "nearswap", "parameters": {"t": 0.01}}, "1", "", marks=SLOW),
        pytest.param({"method": "model_stock"}, "1", "1", marks=SLOW),
        pytest.param({"method": "ram"}, "1", "1", marks=SLOW),
    ],
)
def test_other_methods(
    settings: dict[str, Any], first: str, second: str, repository: Repository, tmp_path: Path
) -> None:
    """mergekit, run on the recipe, makes the version; the export refuses anything else."""
    tuned = fine_tuned(repository.root / "base", tmp_path / "other", seed=5)
    commands = [["rm", "calm"], ["import", "eager", str(tuned)], ["add", "brisk", "--scale", first]]
    commands += [["add", "eager", "--scale", second]] if second else []
    method = ["method", settings["method"]]
    for name, value in settings.get("parameters", {}).items():
        method += ["--set", f"{name}={value}"]
    for command in [*commands, method]:
        code, out, err = run_persona(*command, cwd=repository.root)
        assert code == 0, out + err
    result = exported(repository, tmp_path / "out")
    assert result.agreement.equal > 0.999
    recipe = yaml.safe_load((tmp_path / "out" / RECIPE).read_text())
    assert recipe["merge_method"] == settings["method"]


@pytest.mark.parametrize(
    ("settings", "scales", "reason"),
    [
        ({"method": "dare_ties"}, (0.5, 1.0), "not those of the seed"),
        ({"method": "arcee_fusion"}, (0.5,), "not those of the seed"),
        ({"method": "tsv_merge"}, (0.5, 1.0), "it has no `tsv_merge`"),
        ({"method": "karcher"}, (0.5, 1.0), "a scale means another thing"),
        ({"method": "nuslerp"}, (0.5, 1.0), "a scale means another thing"),
        ({"method": "ram"}, (0.5, 1.0), "has no weights; the scales are 0.5, 1"),
        ({"method": "breadcrumbs", "parameters": {"normalize": "weighted"}}, (0.5, -1.0), "turns the sign"),
    ],
)
def test_methods_without_a_recipe(settings: dict[str, Any], scales: tuple[float, ...], reason: str) -> None:
    with pytest.raises(IncompatibleError, match=reason) as caught:
        recipe_of(Composition.model_validate(settings), uses(*scales))
    assert "--to vllm" in caught.value.hint


@SLOW
@pytest.mark.parametrize(("scale", "lam"), [(0.5, 1.0), (-0.5, 2.0)])
def test_the_mean_of_equal_scales(scale: float, lam: float, template: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(template, tmp_path / "repository"))
    for command in (
        ["method", "ties", "--trim-scope", "tensor", "--density", "1", "--normalize", "mean", "--lambda", str(lam)],
        ["add", "brisk", "--scale", str(scale)],
        ["add", "calm", "--scale", str(scale)],
    ):
        assert run_persona(*command, cwd=root)[0] == 0
    assert exported(Repository(root), tmp_path / "out").agreement.equal > 0.999


@pytest.mark.parametrize(
    ("kind", "lost", "more"),
    [
        ("llama-bias", "would drop 21 tensors (`model.layers.0.mlp.down_proj.bias`", ""),
        (
            "qwen3_moe",
            "would drop 36 tensors (`model.layers.0.mlp.experts.0.down_proj.weight`",
            "would write 6 tensors",
        ),
    ],
)
def test_a_base_of_which_mergekit_would_lose_tensors(kind: str, lost: str, more: str, tmp_path: Path) -> None:
    base = tiny_checkpoint(kind, tmp_path / "base")
    repository = using(tmp_path, ("polite", fine_tuned(base, tmp_path / "tuned"), "--scale 0.5"))
    with pytest.raises(IncompatibleError) as caught:
        exported(repository, tmp_path / "out")
    assert lost in caught.value.message
    assert more in caught.value.message
    assert "keep every tensor" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_base_of_two_dtypes(tmp_path: Path) -> None:
    base = tiny_checkpoint("llama", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    repository = using(tmp_path, ("polite", fine_tuned(base, tmp_path / "tuned"), "--scale 0.5"))
    with pytest.raises(IncompatibleError, match=r"1 tensor \(`model\.norm\.weight`\) of another dtype than BF16"):
        exported(repository, tmp_path / "out")


def test_how_the_base_is_named() -> None:
    assert base_reference("org/model", "a" * 40, Path("/cache/model")) == f"org/model@{'a' * 40}"
    assert base_reference("base", "", Path("/models/base")) == "/models/base"
    with pytest.raises(IncompatibleError, match="for a revision or an adapter"):
        base_reference("base", "", Path("/models/c++/base"))


def test_a_version_that_steers(repository_copy: Path, tmp_path: Path) -> None:
    repository = Repository(repository_copy)
    steer(repository, "candid", 1, torch.ones(96))
    for command in (["add", "listening", "--scale", "0.5"], ["add", "candid@1", "--scale", "0.1"]):
        assert run_persona(*command, cwd=repository_copy)[0] == 0
    with pytest.raises(IncompatibleError, match=r"also steers \(candid@1\)"):
        exported(repository, tmp_path / "out")
    with pytest.raises(IncompatibleError, match="v1 changes no weights"):
        export_mergekit(repository, History(repository).find("v1"), tmp_path / "out")


def test_a_merge_that_is_another_model_is_not_kept(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*arguments: Any) -> dict[str, Any]:
        found = description(*arguments)
        found["models"][0]["parameters"]["weight"] *= 1.1
        return found

    monkeypatch.setattr(mergekit_export, "description", other)
    with pytest.raises(CorruptError, match=r"makes another model of the recipe than this version: \d+\.\d+% of the"):
        exported(repository, tmp_path / "out")

    def impossible(*arguments: Any) -> dict[str, Any]:
        return {**description(*arguments), "merge_method": "magic"}

    monkeypatch.setattr(mergekit_export, "description", impossible)
    with pytest.raises(PersonaError, match=r"mergekit 0\.\S+ fails on the recipe: .*magic"):
        exported(repository, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []
