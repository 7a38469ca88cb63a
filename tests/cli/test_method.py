"""`persona method`, and what the other verbs make of a method that is neither `linear` nor `ties`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.composition.opening import composer_of
from personality.manifests.composition_methods import METHODS
from personality.manifests.repository import Repository
from personality.versions.history import History
from tests.conftest import fine_tuned, run_persona, tiny_checkpoint


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three vectors of a tiny Llama, two of them in use."""
    root = tmp_path_factory.mktemp("method") / "repository"
    base = tiny_checkpoint("llama", root / "base")
    assert run_persona("init", "--base", str(base), str(root))[0] == 0
    for seed, name in enumerate(("brisk", "calm", "dry"), start=1):
        tuned = fine_tuned(base, root.parent / name, seed=seed)
        assert run_persona("import", name, str(tuned), cwd=root)[0] == 0
    for name, scale in (("brisk", "0.5"), ("calm", "0.4")):
        assert run_persona("add", name, "--scale", scale, cwd=root)[0] == 0
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(template, tmp_path / "repository"))


def data(*arguments: str, cwd: Path) -> Any:
    code, out, err = run_persona(*arguments, "--json", cwd=cwd)
    assert code == 0, out + err
    return json.loads(out)["data"]


def test_list_needs_no_repository(tmp_path: Path) -> None:
    code, out, _ = run_persona("method", "--list", cwd=tmp_path)
    assert code == 0
    for method in METHODS.values():
        assert f"\n{method.name}\n  {method.summary} ({method.citation})" in "\n" + out
    assert len(data("method", "--list", cwd=tmp_path)["methods"]) == len(METHODS)


def test_history_and_diff_say_the_settings(root: Path) -> None:
    assert run_persona("method", "dare_ties", "--density", "0.3", "--seed", "1", cwd=root)[0] == 0
    text = "dare_ties (density 0.3, lambda 1, normalize sum, rescale true, seed 1)"
    assert text in run_persona("status", cwd=root)[1]
    assert text in run_persona("log", cwd=root)[1]
    assert text in run_persona("show", "head", cwd=root)[1]
    assert "[composition.parameters]" in (root / "persona.toml").read_text()
    # What is not given stays; another method begins with its own defaults.
    assert run_persona("method", "dare_ties", "--set", "rescale=false", cwd=root)[0] == 0
    assert "density 0.3, lambda 1, normalize sum, rescale false, seed 1" in run_persona("status", cwd=root)[1]
    code, out, err = run_persona("diff", "v4", "v5", cwd=root)
    assert code == 0, err
    assert "rescale true" in out and "rescale false" in out
    assert run_persona("method", "linear", cwd=root)[0] == 0
    assert run_persona("undo", cwd=root)[0] == 0
    assert "rescale false" in run_persona("status", cwd=root)[1]
    assert run_persona("restore", "v3", cwd=root)[0] == 0
    assert "composition  linear" in run_persona("status", cwd=root)[1]


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].most != 1])
def test_build_and_verify(root: Path, method: str) -> None:
    assert run_persona("method", method, cwd=root)[0] == 0
    repository = Repository(root)
    built = data("build", cwd=root)
    assert data("verify", cwd=root)
    composer = composer_of(repository, History(repository).head().personality)
    assert composer.touched == list(composer.specs), built
    assert any(not torch.equal(composer.tensor(name), composer.base.tensor(name)) for name in composer.specs)


@pytest.mark.parametrize("method", ["slerp", "arcee_fusion", "nearswap"])
def test_more_vectors_than_a_method_composes_are_refused_at_once(root: Path, method: str) -> None:
    before = run_persona("log", cwd=root)[1]
    code, _, err = run_persona("method", method, cwd=root)
    assert code == 1
    assert "`brisk@1`, `calm@1`" in err
    assert run_persona("log", cwd=root)[1] == before
    assert run_persona("rm", "calm", cwd=root)[0] == 0
    assert run_persona("method", method, cwd=root)[0] == 0
    code, _, err = run_persona("add", "dry", cwd=root)
    assert code == 1
    assert method in err


def test_a_change_that_no_intermediate_recipe_can_show_is_one_change(root: Path) -> None:
    """From one vector under `slerp` to another one: both at once cannot be composed, so neither owns the change."""
    assert run_persona("rm", "calm", cwd=root)[0] == 0
    assert run_persona("method", "slerp", cwd=root)[0] == 0
    first = History(Repository(root)).label(History(Repository(root)).head())
    assert run_persona("restore", "v1", cwd=root)[0] == 0
    assert run_persona("method", "slerp", cwd=root)[0] == 0
    assert run_persona("add", "dry", cwd=root)[0] == 0
    owners = data("diff", first, "head", cwd=root)["owners"]
    assert [(owner["what"], round(owner["share"], 6)) for owner in owners] == [("brisk and dry", 1.0)]
    assert "100% of ‖change‖² is owned by  brisk and dry" in run_persona("diff", first, "head", cwd=root)[1]


def test_owners_of_a_joint_method(root: Path) -> None:
    assert run_persona("method", "tsv_merge", cwd=root)[0] == 0
    assert run_persona("scale", "brisk", "0.9", cwd=root)[0] == 0
    assert run_persona("scale", "calm", "0.1", cwd=root)[0] == 0
    owners = data("diff", "v4", "v6", cwd=root)["owners"]
    assert {owner["what"] for owner in owners} == {"brisk", "calm"}
    assert sum(owner["share"] for owner in owners) == pytest.approx(1, abs=1e-6)


def test_check_takes_any_method(root: Path) -> None:
    found = data("check", "--method", "iso_c", "--weights-only", cwd=root)
    assert found["composition"] == {"method": "iso_c", "parameters": {"lambda": 1.0}}
    code, _, err = run_persona("check", "--method", "slerp", "--weights-only", cwd=root)
    assert code == 1
    assert "composes 1 vector" in err


def test_init_takes_any_method(root: Path, tmp_path: Path) -> None:
    arguments = ["--base", str(root / "base"), "--method", "breadcrumbs", "--set", "gamma=0.02"]
    assert run_persona("init", *arguments, str(tmp_path / "new"))[0] == 0
    assert "gamma 0.02" in run_persona("status", cwd=tmp_path / "new")[1]


def test_a_density_that_no_method_heeds_is_said(root: Path) -> None:
    assert run_persona("method", "iso_c", cwd=root)[0] == 0
    assert "`iso_c` has no density" in run_persona("add", "dry", "--density", "0.2", cwd=root)[2]
    assert run_persona("method", "dare_linear", cwd=root)[0] == 0
    assert "density" not in run_persona("add", "dry", "--density", "0.1", cwd=root)[2]
