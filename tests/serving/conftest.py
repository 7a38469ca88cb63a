"""A repository on a tiny model with three versions that answer differently, and their exports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.serving.exports import export_for_server
from tests.conftest import fine_tuned, run_persona
from tests.tiny_chat import chat_base


@dataclass(frozen=True)
class Versions:
    """A repository, its versions by label, and where their exports for a server with the plugin lie."""

    repository: Repository
    versions: dict[str, Version]
    folders: dict[str, Path]


def make_versions(root: Path, seed: int = 1, change: Callable[[Path], object] = lambda base: None) -> Versions:
    change(chat_base("llama", root / "repository/base"))
    fine_tuned(root / "repository/base", root / "tuned", seed=seed)
    for arguments in (
        ["init", "--base", "base"],
        ["import", "polite", str(root / "tuned")],
        ["add", "polite", "--scale", "0.8"],
        ["scale", "polite", "-0.5"],
    ):
        code, _, err = run_persona(*arguments, cwd=root / "repository")
        assert code == 0, err
    repository = Repository(root / "repository")
    versions = {version.label: version for version in repository.versions().values()}
    exported = {
        label: export_for_server(repository, version, plugin=True)[0]
        for label, version in versions.items()
        if label != "v3"
    }
    return Versions(repository, versions, exported)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """v1 (the base), v2 and v3; v1 and v2 are exported. Read only: `copied` is a test's own."""
    return make_versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def copied(exported: Versions, tmp_path: Path) -> Versions:
    """The same in a folder of the test's own."""
    import shutil

    root = shutil.copytree(exported.repository.root, tmp_path / "repository")
    repository = Repository(root)
    moved = {label: root / path.relative_to(exported.repository.root) for label, path in exported.folders.items()}
    return Versions(repository, exported.versions, moved)
