"""A playground without vectors, and directions to put into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.manifests.repository import Repository
from personality.playground.repository import make_playground


@pytest.fixture(scope="session")
def empty_playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playground without vectors, of 4 layers of width 96; only copied."""
    root = tmp_path_factory.mktemp("empty") / "play"
    make_playground(root, probe_rows=2)
    return root


@pytest.fixture
def repository(empty_playground: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(empty_playground, tmp_path / "play")))


def some_directions(*layers: int, scale: float = 1.0) -> dict[int, Tensor]:
    return {layer: torch.randn(96, generator=torch.Generator().manual_seed(layer)) * scale for layer in layers}


def same_directions(first: dict[int, Tensor], second: dict[int, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())
