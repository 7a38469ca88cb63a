"""A file is known by what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.vectors.interop.base_shape import BaseShape, base_shape
from personality.vectors.interop.gguf_file import write_gguf
from personality.vectors.interop.reading import read_directions
from tests.conftest import ARCHITECTURES, tiny_checkpoint

BASE = BaseShape(layers=4, width=6, model_type="qwen3")


def test_names_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "directions.dat"
    directions = {1: torch.ones(6), 2: torch.ones(6) * 2}
    write_gguf(path, directions, "qwen3")
    assert read_directions(path, BASE, "").source == "gguf-control-vector"
    save_file({str(layer): tensor for layer, tensor in directions.items()}, path)
    assert read_directions(path, BASE, "").source == "safetensors"
    torch.save(directions, path)
    assert read_directions(path, BASE, "").source == "torch"
    torch.save(directions, path, _use_new_zipfile_serialization=False)
    assert read_directions(path, BASE, "").source == "torch"


@pytest.mark.parametrize("name", ["v.gguf", "v.safetensors", "v.pt", "V.PTH"])
@pytest.mark.parametrize(("content", "what"), [(b"", "is empty"), (b"<html>\n<body>", "begins with `<html>·<b`")])
def test_not_what_the_name_promises(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptError, match=what):
        read_directions(tmp_path / name, BASE, "")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello, world")
    with pytest.raises(IncompatibleError, match="begins with `hello, wo`: it is no file of directions"):
        read_directions(tmp_path / "notes.txt", BASE, "")
    with pytest.raises(NotFoundError, match="there is no file"):
        read_directions(tmp_path / "nowhere.gguf", BASE, "")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_shape_of_a_base(tmp_path: Path, kind: str) -> None:
    from personality.model import load_model
    from personality.vectors.steering.decoder_layers import decoder_layers, residual_width

    shape = base_shape(tiny_checkpoint(kind, tmp_path / "base"))
    model = load_model(tmp_path / "base")
    assert (shape.layers, shape.width) == (len(decoder_layers(model)), residual_width(model)) == (3, 32)
    assert shape.model_type == model.config.model_type
