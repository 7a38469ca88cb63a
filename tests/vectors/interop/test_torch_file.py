"""Files of `torch.save`: tensors are read, programs are not."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from personality.manifests.errors import CorruptError, IncompatibleError
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.torch_file import read_torch, write_persona_vectors

BASE = BaseShape(layers=4, width=6, model_type="qwen3")


class Program:
    """What a hostile pickle does."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_persona_vectors_layout(tmp_path: Path, zipped: bool, dtype: torch.dtype) -> None:
    rows = torch.randn(5, 6).to(dtype)
    found = read_torch(saved(rows, tmp_path / "v.pt", _use_new_zipfile_serialization=zipped), BASE)
    assert (found.source, found.positions) == ("persona-vectors", "response")
    assert list(found.directions) == [0, 1, 2, 3]
    assert all(torch.equal(found.directions[layer], rows[layer + 1].float()) for layer in range(4))


def test_rows_are_the_hidden_states_of_transformers(tmp_path: Path) -> None:
    from personality.model import load_model
    from personality.vectors.steering.decoder_layers import decoder_layers
    from tests.conftest import tiny_checkpoint

    model = load_model(tiny_checkpoint("qwen3", tmp_path / "base"))
    outputs: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(decoder_layers(model)):
        block.register_forward_hook(
            lambda _module, _inputs, output, layer=layer: outputs.update({layer: output[0, -1].detach().clone()})
        )
    with torch.no_grad():
        states = model(input_ids=torch.arange(5)[None], output_hidden_states=True).hidden_states
    saved(torch.stack([state[0, -1] for state in states]), tmp_path / "v.pt")
    found = read_torch(tmp_path / "v.pt", BaseShape(3, 32, "qwen3"))
    assert torch.equal(found.directions[0], outputs[0])
    assert torch.equal(found.directions[1], outputs[1])
    # The last one is read after the final norm, which the note says.
    assert not torch.equal(found.directions[2], outputs[2])
    assert torch.equal(found.directions[2], model.model.norm(outputs[2]).detach())
    assert "layer 2, after the final norm" in found.notes[1]


def test_tables_and_parameters(tmp_path: Path) -> None:
    content = OrderedDict({2: torch.nn.Parameter(torch.ones(6)), 1: torch.ones(6) * 2})
    found = read_torch(saved(content, tmp_path / "v.pt"), BASE)
    assert {layer: float(tensor[0]) for layer, tensor in found.directions.items()} == {1: 2.0, 2: 1.0}
    assert not found.directions[2].requires_grad
    assert found.source == "torch"


def test_written_as_persona_vectors_reads(tmp_path: Path) -> None:
    write_persona_vectors(tmp_path / "v.pt", {1: torch.ones(6), 3: torch.ones(6) * 3}, BASE)
    rows = torch.load(tmp_path / "v.pt", weights_only=True)
    assert rows.shape == (5, 6)
    assert rows[:, 0].tolist() == [0.0, 0.0, 1.0, 0.0, 3.0]
    found = read_torch(tmp_path / "v.pt", BASE)
    assert (list(found.directions), found.idle) == ([1, 3], (0, 2))


def test_programs_are_not_run(tmp_path: Path) -> None:
    hostile = Program(tmp_path / "trace")
    files = [
        saved({"v": hostile}, tmp_path / "zip.pt"),
        saved(hostile, tmp_path / "old.pt", _use_new_zipfile_serialization=False),
        saved(torch.nn.Linear(2, 2), tmp_path / "module.pt"),
        saved(np.ones(6), tmp_path / "numpy.pt"),
    ]
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(hostile))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    for path in [*files, tmp_path / "plain.pt", tmp_path / "script.pt"]:
        with pytest.raises(IncompatibleError, match="could run a program") as caught:
            read_torch(path, BASE)
        assert "torch.save(tensor, FILE)" in caught.value.hint
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files_are_corrupt(tmp_path: Path, zipped: bool) -> None:
    buffer = io.BytesIO()
    torch.save(torch.ones(5, 6), buffer, _use_new_zipfile_serialization=zipped)
    whole = buffer.getvalue()
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        (tmp_path / "v.pt").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CorruptError, match=r"not a whole file of `torch\.save`"):
            read_torch(tmp_path / "v.pt", BASE)


def test_other_content_is_refused(tmp_path: Path) -> None:
    for content in (7, "text", {"a": 1}, [1.0, 2.0], torch.ones(7, 6), {"w.weight": torch.ones(3, 3)}):
        with pytest.raises(IncompatibleError):
            read_torch(saved(content, tmp_path / "v.pt"), BASE)


def test_large_checkpoints_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.pt").write_bytes(pickle.dumps({}, protocol=2))
    os.truncate(tmp_path / "old.pt", 14 * 10**9)  # sparse: takes no room
    with pytest.raises(IncompatibleError, match=r"14\.00 GB"):
        read_torch(tmp_path / "old.pt", BASE)
    saved({"lm_head.weight": torch.ones(9, 6), "model.norm.weight": torch.ones(6)}, tmp_path / "new.pt")
    loaded: list[Any] = []
    real = torch.load

    def load(*arguments: Any, **options: Any) -> Any:
        loaded.append(real(*arguments, **options))
        assert options["mmap"] is True
        return loaded[-1]

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(IncompatibleError, match=r"`lm_head\.weight`, which names no layer"):
        read_torch(tmp_path / "new.pt", BASE)
    assert loaded
