from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.builds.build import build, build_path
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Composition
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.versions.changes import add, compose_by, remove, rescale
from tests.conftest import fine_tuned, run_persona

SHARD_BYTES = 15_000


@pytest.fixture
def repository(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Repository:
    """`polite` changes every tensor of a tiny Llama, `brief` those of its last layer; composed by TIES."""
    base = make_checkpoint("llama")
    root = tmp_path / "repository"
    commands = [["init", "--base", str(base), str(root)]]
    for seed, (name, only) in enumerate({"polite": "", "brief": "layers.1."}.items()):
        tuned = fine_tuned(base, tmp_path / name, seed=seed, only=only)
        commands.append(["import", name, str(tuned), "-C", str(root)])
    for arguments in commands:
        code, _, err = run_persona(*arguments)
        assert code == 0, err
    repository = Repository(root)
    add(repository, VectorLabel("polite"), 0.6)
    add(repository, VectorLabel("brief"), 0.5)
    compose_by(repository, Composition(method="ties", density=0.4))
    return repository


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def from_scratch(repository: Repository, version: Version) -> dict[str, bytes]:
    """What a build without any other gives."""
    built = build(repository, version, again=True, shard_bytes=SHARD_BYTES)
    assert built.taken_bytes == 0
    return shards(built.path)


def rescaled(repository: Repository) -> tuple[Version, Version, int]:
    """A version with `brief` at one scale, built; the next with another; the bytes that `brief` leaves alone."""
    first = rescale(repository, "brief", 0.4).version
    build(repository, first, shard_bytes=SHARD_BYTES)
    second = rescale(repository, "brief", -0.7).version
    untouched = sum(
        int(spec["data_offsets"][1]) - int(spec["data_offsets"][0])
        for path in build_path(repository, first).glob("*.safetensors")
        for name, spec in header(path).items()
        if name != "__metadata__" and "layers.1." not in name
    )
    return first, second, untouched


def header(path: Path) -> dict[str, dict[str, list[int]]]:
    import json

    raw = path.read_bytes()
    found: dict[str, dict[str, list[int]]] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return found


def test_what_a_change_leaves_alone_is_taken_over(repository: Repository) -> None:
    first, second, untouched = rescaled(repository)
    built = build(repository, second, shard_bytes=SHARD_BYTES)
    assert built.new
    assert built.taken_bytes == untouched > 0
    old, new = shards(build_path(repository, first)), shards(built.path)
    shared = [name for name in new if (built.path / name).samefile(build_path(repository, first) / name)]
    assert shared, "no whole shard was the same"
    assert all(old[name] == new[name] for name in shared)
    assert [name for name in new if old[name] != new[name]], "no shard was another one"
    assert new == from_scratch(repository, second)


def test_a_change_of_the_method_takes_nothing(repository: Repository) -> None:
    _, second, _ = rescaled(repository)
    build(repository, second, shard_bytes=SHARD_BYTES)
    third = compose_by(repository, Composition(method="linear")).version
    assert build(repository, third, shard_bytes=SHARD_BYTES).taken_bytes == 0


def test_shards_that_no_behavior_touches_are_shared(repository: Repository) -> None:
    remove(repository, "polite")
    first, second, untouched = rescaled(repository)
    built = build(repository, second, shard_bytes=SHARD_BYTES)
    shared = [
        path for path in built.path.glob("*.safetensors") if path.samefile(build_path(repository, first) / path.name)
    ]
    assert shared
    assert 0 < built.taken_bytes < untouched  # tensors beside others that change come from the base
    assert shards(built.path) == from_scratch(repository, second)


def test_a_damaged_build_is_no_source(repository: Repository) -> None:
    first, second, _ = rescaled(repository)
    for path in build_path(repository, first).glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    built = build(repository, second, shard_bytes=SHARD_BYTES)
    assert built.taken_bytes == 0
    assert shards(built.path) == from_scratch(repository, second)


def test_without_links_a_shard_is_copied(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, untouched = rescaled(repository)

    def refuse(*_: object) -> None:
        raise OSError(1, "links are not allowed here")

    monkeypatch.setattr(os, "link", refuse)
    built = build(repository, second, shard_bytes=SHARD_BYTES)
    assert built.taken_bytes == untouched
    assert not any(path.samefile(build_path(repository, first) / path.name) for path in built.path.iterdir())
    assert shards(built.path) == from_scratch(repository, second)


def test_shards_of_a_build_are_read_only(repository: Repository) -> None:
    first, _, _ = rescaled(repository)
    modes = {path.stat().st_mode & 0o777 for path in build_path(repository, first).glob("*.safetensors")}
    assert modes == {0o444}


def test_the_command_says_what_was_taken_over(repository: Repository) -> None:
    _, second, _ = rescaled(repository)
    code, _, err = run_persona(
        "build", second.id[:12], "-C", str(repository.root), "--shard-gb", str(SHARD_BYTES / 1e9)
    )
    assert code == 0, err
    assert "taken over from another build" in err
