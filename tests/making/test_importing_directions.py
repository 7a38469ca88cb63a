"""Directions of other programs: imported as a steering vector, and used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from personality.making.importing_directions import import_directions
from personality.manifests.repository import Repository
from personality.manifests.vector_store import stored_ids
from personality.vectors.interop.gguf_file import write_gguf
from personality.vectors.steering.steering_file import open_steering
from tests.making.conftest import same_directions, some_directions

Persona = Callable[..., tuple[int, str, str]]


def test_a_control_vector(repository: Repository, persona: Persona, tmp_path: Path) -> None:
    directions = some_directions(1, 2, 3)
    write_gguf(tmp_path / "happy.gguf", directions, "qwen3")
    code, out, err = persona("import", "happy", "../happy.gguf", cwd=repository.root)
    assert code == 0, err
    assert "happy@1" in out
    assert "the file's own, not calibrated" in out
    assert "not proven" in out
    manifest = repository.manifests()[0]
    assert (manifest.kind, manifest.encoding, manifest.rounding) == ("steering", "directions", None)
    assert manifest.making.how == "import-directions"
    assert manifest.making.source == "happy.gguf"
    assert manifest.making.settings["layout"] == "gguf-control-vector"
    record = manifest.steering
    assert record is not None
    assert (record.positions, record.mode, record.layers) == ("all", "add", (1, 2, 3))
    assert (record.proof, record.calibration, record.contrast, record.proven) == (None, None, None, False)
    vector = open_steering(repository, manifest.id, manifest.label)
    for layer, tensor in vector.acting().items():
        torch.testing.assert_close(tensor, directions[layer], rtol=1e-6, atol=0)
    again = persona("import", "happy", "../happy.gguf", "--json", cwd=repository.root)
    assert json.loads(again[1])["data"]["new"] is False


def test_options_say_where(repository: Repository, persona: Persona, tmp_path: Path) -> None:
    torch.save(torch.stack(list(some_directions(9, 0, 1, 2, 3).values())), tmp_path / "evil.pt")
    root = repository.root
    code, out, err = persona("import", "evil", "../evil.pt", "--json", cwd=root)
    assert code == 0, err
    data = json.loads(out)["data"]
    assert data["vector"]["steering"]["positions"] == "response"
    assert any("share the strength" in note for note in data["notes"])
    assert any("embeddings' output, is left out" in note for note in data["notes"])
    code, out, err = persona(
        "import", "evil", "../evil.pt", "--layers", "2", "--positions", "decision", "--json", cwd=root
    )
    assert code == 0, err
    data = json.loads(out)["data"]
    assert data["vector"]["steering"]["layers"] == [2]
    assert data["vector"]["steering"]["positions"] == "decision"
    assert not any("share the strength" in note for note in data["notes"])
    found = open_steering(repository, data["vector"]["id"], "evil@2")
    assert same_directions(found.acting(), some_directions(2))


def test_one_direction_and_its_layer(repository: Repository, persona: Persona, tmp_path: Path) -> None:
    torch.save(some_directions(0)[0], tmp_path / "one.pt")
    code, _, err = persona("import", "one", "../one.pt", cwd=repository.root)
    assert code == 2
    assert "does not say of which layer" in err
    code, _, err = persona("import", "one", "../one.pt", "--layers", "3", cwd=repository.root)
    assert code == 0, err
    manifest = repository.manifests()[0]
    assert same_directions(open_steering(repository, manifest.id, manifest.label).acting(), {3: some_directions(0)[0]})


def test_used_like_any_other(repository: Repository, persona: Persona, tmp_path: Path) -> None:
    write_gguf(tmp_path / "v.gguf", some_directions(2, scale=30.0), "qwen3")
    import_directions(repository, "odd", tmp_path / "v.gguf")
    code, _, err = persona("add", "odd", "--scale", "1", cwd=repository.root)
    assert code == 0, err
    asked = [persona("ask", "Rename the file a to b.", "--version", v, cwd=repository.root) for v in ("v1", "v2")]
    assert [code for code, _, _ in asked] == [0, 0]
    assert asked[0][1] != asked[1][1]


def wrong(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(29, 3584), r"shape [29, 3584], the base has 4 layers (0-3) of width 96"),
        ({1: torch.ones(64)}, "shape [64], the base's residual stream has width 96"),
        ({4: torch.ones(96)}, "layer 4, the base has 4 layers (0-3)"),
        ({1: torch.full((96,), float("nan"))}, "96 NaN or infinite values"),
        ({1: torch.zeros(96)}, "are zero"),
    ],
)
def test_wrong_files_leave_nothing(
    repository: Repository, persona: Persona, tmp_path: Path, content: Any, message: str
) -> None:
    wrong(tmp_path / "wrong.pt", content)
    code, _, err = persona("import", "wrong", "../wrong.pt", cwd=repository.root)
    assert code == 1
    assert message in err
    assert "hint:" in err
    assert (repository.manifests(), stored_ids(repository)) == ([], {})


def test_options_need_a_file(repository: Repository, persona: Persona) -> None:
    code, _, err = persona("import", "polite", "base", "--layers", "1", cwd=repository.root)
    assert code == 2
    assert "are for a file of directions" in err
    code, _, err = persona("import", "polite", "base/model.safetensors", cwd=repository.root)
    assert code == 1
    assert "imported by the folder that it lies in" in err
    code, _, err = persona("import", "polite", "nowhere.gguf", cwd=repository.root)
    assert code == 1
    assert "there is no file nowhere.gguf" in err
