"""Steering vectors written for other programs: what a target can carry comes back, the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from personality.making.exporting_vectors import VECTOR_TARGETS, export_vector
from personality.making.importing_directions import import_directions
from personality.manifests.errors import IncompatibleError, PersonaError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import LayerRange
from personality.manifests.repository import Repository
from personality.vectors.interop.gguf_file import write_gguf
from personality.vectors.steering.steering_file import open_steering
from tests.making.conftest import same_directions, some_directions

Persona = Callable[..., tuple[int, str, str]]


def test_written_and_imported_again(repository: Repository, persona: Persona, tmp_path: Path) -> None:
    write_gguf(tmp_path / "v.gguf", some_directions(1, 2, 3), "qwen3")
    first, _, _ = import_directions(repository, "happy", tmp_path / "v.gguf", layers=LayerRange(first=2, last=3))
    acting = open_steering(repository, first.id, first.label).acting()
    for target in VECTOR_TARGETS:
        path = f"../{target}"
        code, out, err = persona("export", "happy@1", "--to", target, path, "--json", cwd=repository.root)
        assert code == 0, err
        data = json.loads(out)["data"]
        assert (data["vector"], data["label"], data["target"]) == (first.id, "happy@1", target)
        assert data["bytes"] == (tmp_path / target).stat().st_size
    # A control vector holds what acts, each layer as strong as in the vector.
    manifest, _, _ = import_directions(repository, "back", tmp_path / "gguf-control-vector")
    back = open_steering(repository, manifest.id, "back@1").acting()
    assert back.keys() == acting.keys()
    for layer, tensor in acting.items():
        torch.testing.assert_close(back[layer], tensor, rtol=1e-6, atol=0)
    # The own layout is the vector itself; persona_vectors' holds every layer, as strong as alone.
    whole, new, _ = import_directions(repository, "happy", tmp_path / "safetensors-directions")
    assert (whole.label, new) == ("happy@1", False)
    rows = torch.load(tmp_path / "persona-vectors", weights_only=True)
    assert rows.shape == (5, 96)
    assert same_directions(dict(enumerate(rows[2:], start=1)), some_directions(1, 2, 3))


def test_what_a_target_cannot_carry(repository: Repository, tmp_path: Path) -> None:
    save_file({"0": some_directions(0)[0]}, tmp_path / "zero.safetensors")
    import_directions(repository, "zero", tmp_path / "zero.safetensors")
    import_directions(repository, "late", tmp_path / "zero.safetensors", positions="decision")
    with pytest.raises(IncompatibleError, match="cannot act in layer 0"):
        export_vector(repository, VectorLabel("zero"), "gguf-control-vector", tmp_path / "out")
    with pytest.raises(IncompatibleError, match="acts at the last token of the prompt only") as caught:
        export_vector(repository, VectorLabel("late"), "gguf-control-vector", tmp_path / "out")
    assert "--to safetensors-directions" in caught.value.hint
    assert not (tmp_path / "out").exists()
    notes = export_vector(repository, VectorLabel("late"), "persona-vectors", tmp_path / "out").notes
    assert "last token of the prompt only" in notes[1]


def test_existing_files_are_kept(repository: Repository, tmp_path: Path) -> None:
    write_gguf(tmp_path / "v.gguf", some_directions(1), "qwen3")
    import_directions(repository, "happy", tmp_path / "v.gguf")
    before = (tmp_path / "v.gguf").read_bytes()
    label = VectorLabel("happy", 1)
    with pytest.raises(PersonaError, match="is there already") as caught:
        export_vector(repository, label, "safetensors-directions", tmp_path / "v.gguf")
    assert "--force" in caught.value.hint
    assert (tmp_path / "v.gguf").read_bytes() == before
    export_vector(repository, label, "safetensors-directions", tmp_path / "v.gguf", force=True)
    assert (tmp_path / "v.gguf").read_bytes() != before
    with pytest.raises(PersonaError, match="is there already"):
        export_vector(repository, label, "safetensors-directions", tmp_path, force=True)


def test_a_task_vector_has_no_directions(repository_copy: Path, persona: Persona, tmp_path: Path) -> None:
    code, _, err = persona(
        "export", "listening@1", "--to", "gguf-control-vector", str(tmp_path / "v"), cwd=repository_copy
    )
    assert code == 2
    assert "`listening@1` is a task vector" in err
    code, _, err = persona("export", "listning@1", "--to", "persona-vectors", str(tmp_path / "v"), cwd=repository_copy)
    assert code == 1
    assert "did you mean `listening`" in err
    code, _, err = persona("export", "listening@1", str(tmp_path / "v"), cwd=repository_copy)
    assert code == 2
    assert "`listening@1` is one vector, `--to hf` writes a version" in err
    assert not (tmp_path / "v").exists()


def test_without_a_number_it_is_the_newest_steering_vector(
    repository_copy: Path, persona: Persona, tmp_path: Path
) -> None:
    repository = Repository(repository_copy)
    write_gguf(tmp_path / "v.gguf", some_directions(1), "qwen3")
    manifest, _, _ = import_directions(repository, "listening", tmp_path / "v.gguf")
    newest = max(item.number for item in repository.manifests() if item.behavior == "listening")
    assert manifest.number == newest
    result = export_vector(repository, VectorLabel("listening"), "gguf-control-vector", tmp_path / "out")
    assert result.manifest.id == manifest.id


@pytest.mark.parametrize("option", [["--without-steering"], ["--bake-unproven"], ["--shard-gb", "5"]])
def test_options_of_versions_are_none_of_vectors(
    repository: Repository, persona: Persona, tmp_path: Path, option: list[str]
) -> None:
    arguments = ["export", "happy@1", "--to", "gguf-control-vector", str(tmp_path / "out"), *option]
    code, _, err = persona(*arguments, cwd=repository.root)
    assert code == 2
    assert f"`{option[0]}` is for versions" in err


@pytest.mark.parametrize("label", ["v1", "head", "stable"])
def test_a_version_is_no_vector(repository: Repository, persona: Persona, tmp_path: Path, label: str) -> None:
    assert persona("tag", "stable", "v1", cwd=repository.root)[0] == 0
    code, _, err = persona("export", label, "--to", "gguf-control-vector", str(tmp_path / "v"), cwd=repository.root)
    assert code == 2
    told = " ".join(err.split())
    assert f"`{label}` is no vector, and `--to gguf-control-vector` writes one steering vector" in told
    assert "NAME@N" in told
