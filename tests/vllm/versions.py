"""Repositories on tiny models that the real vLLM runs, with a vector of each kind in use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.manifests.steering_record import Positions
from personality.playground.repository import base_folder
from personality.versions.changes import add
from tests.conftest import fine_tuned, run_persona
from tests.steering_fixtures import steer
from tests.vectors.test_adapter import adapted
from tests.vllm.models import vllm_checkpoint

LINEAR = ["q_proj", "o_proj", "down_proj"]
"""Layers of every architecture here, at least some of them, that an adapter changes."""


def weights_repository(kind: str, root: Path) -> Repository:
    """A repository with a dense task vector, `polite`, and a low-rank one, `brief`, both in use.

    Args:
        kind: of `tests.vllm.models.KINDS`, or `playground`.
        root: folder to make; the repository is `root/repository`.
    """
    base = root / "repository/base"
    if kind == "playground":
        shutil.copytree(base_folder(), base, ignore=shutil.ignore_patterns("__*"))
    else:
        vllm_checkpoint(kind, base)
    fine_tuned(base, root / "tuned")
    adapted(base, root / "adapter", target_modules=LINEAR)
    for arguments in (
        ["init", "--base", "base"],
        ["import", "polite", str(root / "tuned")],
        ["import", "brief", str(root / "adapter")],
        ["add", "polite", "--scale", "0.8"],
        ["add", "brief", "--scale", "2"],
    ):
        code, _, err = run_persona(*arguments, cwd=root / "repository")
        assert code == 0, err
    return Repository(root / "repository")


def add_steering(
    repository: Repository,
    behavior: str = "candid",
    positions: Positions = "all",
    *,
    layer: int = 1,
    size: float = 1.0,
    seed: int = 0,
) -> None:
    """Put a random steering vector into use, at scale 0.5."""
    width = json.loads((repository.root / "base/config.json").read_bytes())["hidden_size"]
    direction = torch.randn(width, generator=torch.Generator().manual_seed(seed)) * size
    steer(repository, behavior, layer, direction, positions)
    add(repository, VectorLabel(behavior), 0.5)
