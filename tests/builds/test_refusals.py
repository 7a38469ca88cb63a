"""What cannot be composed leaves no folder behind, and the one that bore the name before as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.builds.build import write_build
from personality.composition.composer import Composer
from personality.manifests.atomic import leftovers
from personality.manifests.errors import FallenApartError, IncompatibleError, PersonaError
from personality.manifests.personality_record import Composition, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector
from personality.versions.history import History
from tests.composition.conftest import store
from tests.conftest import run_persona

Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"
NAN, INF = float("nan"), float("inf")
Make = Callable[..., Path]


def with_value(shape: tuple[int, ...], value: float) -> Tensor:
    tensor = torch.full(shape, 0.01)
    tensor.view(-1)[5] = value
    return tensor


VECTORS: dict[str, tuple[dict[str, Tensor], type[PersonaError], str]] = {
    "NaN in a vector": ({Q: with_value((32, 32), NAN)}, FallenApartError, f"composing `{Q}` gives NaN"),
    "infinity in a vector": ({NORM: with_value((32,), INF)}, FallenApartError, f"composing `{NORM}` gives NaN"),
    "overflow": ({NORM: with_value((32,), 3e38)}, FallenApartError, f"composing `{NORM}` gives NaN"),
    "another shape": ({Q: torch.ones(32, 31)}, IncompatibleError, rf"changes `{Q}` as \[32, 31\], the base has BF16"),
    "another number of dimensions": ({Q: torch.ones(1024)}, IncompatibleError, rf"changes `{Q}` as \[1024\]"),
    "a tensor that the base lacks": ({"model.x": torch.ones(2)}, IncompatibleError, r"changes 1 tensor \(`model\.x`\)"),
    "a change of integers": ({"model.table": torch.ones(4)}, IncompatibleError, r"the base has I64 \[4\]"),
}


@pytest.fixture
def base(make_checkpoint: Make) -> Path:
    folder = make_checkpoint("llama")
    path = folder / "model.safetensors"
    save_file({**load_file(path), "model.table": torch.arange(4)}, path, {"format": "pt"})
    return folder


def composed_into(root: Path, base: Path, tensors: dict[str, Tensor], method: Composition | None = None) -> Path:
    """Write a version that uses a vector of these tensors to `root/out`, where another build lies already."""
    if not (root / "repository").exists():
        assert run_persona("init", "--base", str(base), str(root / "repository"))[0] == 0
    repository = Repository(root / "repository")
    (root / "out").mkdir()
    (root / "out/model.safetensors").write_bytes(b"what was there")
    version = History(repository).head()
    use = Use(behavior="b", number=1, vector=store(repository, tensors), scale=2.0)
    personality = version.personality.model_copy(update={"uses": (use,), "composition": method or Composition()})
    vector = open_task_vector(repository, use.vector, use.label)
    composer = Composer(Checkpoint(base), personality, {use.vector: vector})
    write_build(repository, version, root / "out", shard_bytes=20_000, on_progress=None, composer=composer)
    return root / "out"


def untouched(root: Path) -> None:
    assert [path.name for path in (root / "out").iterdir()] == ["model.safetensors"]
    assert (root / "out/model.safetensors").read_bytes() == b"what was there"
    assert leftovers(root) == []


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_that_cannot_be_composed(base: Path, tmp_path: Path, name: str) -> None:
    tensors, error, message = VECTORS[name]
    with pytest.raises(error, match=message):
        composed_into(tmp_path, base, tensors)
    untouched(tmp_path)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("trim_scope", ["vector", "tensor"])
def test_trimming_does_not_hide_them(base: Path, tmp_path: Path, value: float, trim_scope: str) -> None:
    """NaN is no magnitude that a threshold could let through or not."""
    method = Composition.model_validate({"method": "ties", "density": 0.5, "trim_scope": trim_scope})
    with pytest.raises(FallenApartError, match=f"composing `{Q}` gives NaN"):
        composed_into(tmp_path, base, {Q: with_value((32, 32), value), NORM: torch.ones(32)}, method)
    untouched(tmp_path)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_base_that_is_not_finite_where_it_is_changed(base: Path, tmp_path: Path, value: float) -> None:
    path = base / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, Q: with_value((32, 32), value).bfloat16()}, path, {"format": "pt"})
    with pytest.raises(FallenApartError, match=f"composing `{Q}` gives NaN or infinite values"):
        composed_into(tmp_path, base, {Q: torch.full((32, 32), 0.01)})
    untouched(tmp_path)


def test_a_base_that_is_not_finite_elsewhere_is_copied(base: Path, tmp_path: Path) -> None:
    """A mask of −∞ that no vector changes is a tensor like any other."""
    path = base / "model.safetensors"
    save_file({**load_file(path), "model.mask": torch.full((2, 2), -INF)}, path, {"format": "pt"})
    out = composed_into(tmp_path, base, {Q: torch.full((32, 32), 0.01)})
    written, before = Checkpoint(out), Checkpoint(base)
    assert written.specs.keys() == before.specs.keys()
    assert written.bytes_of("model.mask") == before.bytes_of("model.mask")
