"""A playground whose newest version uses `concise@1`, exported and served by a fake server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from personality.builds.export import export
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.versions.changes import add
from personality.versions.history import History
from tests.live.fake_server import FakeServer


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    found = Repository(repository_copy)
    add(found, VectorLabel.parse("concise"), scale=0.5)
    return found


@pytest.fixture
def exported(repository: Repository, tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    export(repository, History(repository).head(), "vllm", folder)
    return folder


@pytest.fixture
def server(exported: Path) -> Iterator[FakeServer]:
    with FakeServer(exported) as found:
        yield found
