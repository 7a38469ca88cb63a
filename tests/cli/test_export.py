"""`persona export`: which options go together, and what it tells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.serving.steering_table import STEERING_FILE
from personality.versions.changes import add
from tests.conftest import run_persona, tiny_checkpoint
from tests.steering_fixtures import steer


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v2 steers everywhere, v3 at the end of a prompt too."""
    root = tmp_path_factory.mktemp("export")
    tiny_checkpoint("llama", root / "base")
    assert run_persona("init", "--base", "base", cwd=root)[0] == 0
    repository = Repository(root)
    for behavior, positions in (("candid", "all"), ("brief", "decision")):
        steer(repository, behavior, 1, torch.ones(32), positions)  # type: ignore[arg-type]
        add(repository, VectorLabel(behavior), 0.5)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "repository"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "vllm", "--vllm", "env"], "`--vllm` names the vLLM that shall verify"),
        (["--to", "vllm", "--without-steering", "--steering", "plugin"], "exclude each other"),
        (["--steering", "plugin"], "leaves steering to a vLLM with the plugin, and the export is for `hf`"),
        (["--to", "vllm", "--steering", "leave-out", "--route", "mlp-bias"], "bakes nothing"),
        (["--to", "vllm", "--rank", "8"], "`--rank` is for `--to lora`"),
        (["--to", "gguf-control-vector", "--route", "mlp-bias"], "`--route` is for versions"),
    ],
)
def test_options_that_do_not_go_together(root: Path, arguments: list[str], told: str) -> None:
    code, _, err = run_persona("export", "v2", "out", *arguments, cwd=root)
    assert code == 2
    assert told in " ".join(err.split())
    assert not (root / "out").exists()


def test_a_folder_without_vllm(root: Path) -> None:
    code, _, err = run_persona(
        "export", "v2", "out", "--to", "vllm", "--verify", "--vllm", str(root / "base"), cwd=root
    )
    assert code == 1
    assert f"there is no vLLM in {root / 'base'}" in err
    assert not (root / "out").exists()


def test_the_route_and_why(root: Path) -> None:
    arguments = ["export", "v2", "out", "--to", "vllm", "--bake-unproven", "--route", "mlp-bias"]
    code, out, err = run_persona(*arguments, cwd=root)
    assert code == 0, err
    assert "candid@1 × 0.5, layer 1: baked in by the route `mlp-bias`" in out
    assert "route `mlp-bias`: asked for" in out
    assert "vLLM itself was not started" in out
    assert "next: persona serve v2" in err


def test_what_is_left_to_the_plugin_and_how_to_serve_it(root: Path) -> None:
    code, out, err = run_persona("export", "v3", "out", "--to", "vllm", cwd=root)
    assert code == 1
    assert "`--steering plugin` leaves it to a server with the plugin" in " ".join(err.split())
    arguments = ["export", "v3", "out", "--to", "vllm", "--steering", "plugin"]
    code, out, err = run_persona(*arguments, cwd=root)
    assert code == 0, err
    assert f"left to the plugin (`{STEERING_FILE}`)" in out
    assert "PERSONA_STEERING=positions VLLM_PLUGINS=persona vllm serve out" in err
    code, out, _ = run_persona(*arguments, "--force", "--json", cwd=root)
    data = json.loads(out)["data"]
    assert data["needs_plugin"] == ["brief@1 × 0.5, layer 1", "candid@1 × 0.5, layer 1"]
    assert data["steering"]["file"] == STEERING_FILE
    assert data["checks"][0]["allowed"] == 1e-4
