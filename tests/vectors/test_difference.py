from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.manifests.atomic import leftovers
from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError, PersonaError
from personality.manifests.repository import Repository
from personality.manifests.vector_store import stored_ids
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.difference import store_difference
from personality.vectors.task_vector import open_task_vector
from tests.conftest import fine_tuned

NORM = "model.layers.1.input_layernorm.weight"
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def base(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("llama")


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    return fine_tuned(base, tmp_path / "tuned")


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def refused(root: Path, base: Path, tuned: Path, error: type[PersonaError], *messages: str, hint: str) -> None:
    """Refused with these words, and nothing stored."""
    repository = Repository(root / "repository")
    with pytest.raises(error) as caught:
        store_difference(repository, Checkpoint(base), Checkpoint(tuned))
    for message in messages:
        assert message in caught.value.message
    assert hint in caught.value.hint
    assert stored_ids(repository) == {}
    assert leftovers(root) == []


def test_a_difference_is_stored_exactly_and_small(base: Path, tuned: Path, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    stored = store_difference(repository, Checkpoint(base), Checkpoint(tuned))
    vector = open_task_vector(repository, stored.id, "b@1")
    old, new = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert stored.tensors.keys() == old.keys()
    squares = 0.0
    for name, tensor in old.items():
        wanted = new[name].float() - tensor.float()
        found = vector.rows(name, 0, tensor.numel()).float().reshape(tensor.shape)
        assert torch.equal(found, wanted)
        squares += float((wanted.double() ** 2).sum())
    assert stored.norm == pytest.approx(squares**0.5, rel=1e-9)
    assert stored.rounding.cosine > 0.9999
    assert stored.bytes == sum(spec.nbytes for spec in vector.specs.values())


def test_only_what_changed_is_stored(base: Path, tmp_path: Path) -> None:
    tuned = fine_tuned(base, tmp_path / "tuned", only="layers.1.")
    repository = Repository(tmp_path / "repository")
    stored = store_difference(repository, Checkpoint(base), Checkpoint(tuned))
    assert stored.tensors
    assert all("layers.1." in name for name in stored.tensors)


def test_bfloat16_where_that_is_exact(base: Path, tuned: Path, tmp_path: Path) -> None:
    def step(tensors: dict[str, Tensor]) -> None:
        tensors[NORM] = (load_file(base / "model.safetensors")[NORM].float() * 1.25).bfloat16()
        tensors[Q] = torch.full_like(tensors[Q], 1 + 2**-7)

    edit(base, lambda tensors: tensors.update({Q: torch.full_like(tensors[Q], 2**-20)}))
    edit(tuned, step)
    repository = Repository(tmp_path / "repository")
    stored = store_difference(repository, Checkpoint(base), Checkpoint(tuned))
    specs = open_task_vector(repository, stored.id, "b@1").specs
    assert specs[NORM].dtype == "BF16"
    assert specs[Q].dtype == "F32"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fine_tune_of_another_dtype(base: Path, tuned: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Scale 1 is the fine-tune rounded to the base's dtype; where float32 cannot hold the difference, up to its last
    bit, which turns the rounding of fewer than one element in a thousand.
    """

    def widen(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(3)
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator) * 1e-3
            tensors[name] = (tensor.float() + noise).to(dtype)

    edit(tuned, widen)
    repository = Repository(tmp_path / "repository")
    stored = store_difference(repository, Checkpoint(base), Checkpoint(tuned))
    vector = open_task_vector(repository, stored.id, "b@1")
    assert vector.specs[Q].dtype == "F32"
    old, new = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    turned = 0
    for name, tensor in old.items():
        change = vector.rows(name, 0, tensor.numel()).reshape(tensor.shape)
        found, wanted = (tensor.float() + change).bfloat16(), new[name].bfloat16()
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=0)
        turned += int((found != wanted).sum())
    assert turned < sum(tensor.numel() for tensor in old.values()) / 1000


def test_training_here_rounds_to_sixteen_bits(base: Path, tmp_path: Path) -> None:
    """What the master weights of a training in float32 moved, relative to a 16-bit base: 2⁻⁹ per element at most."""
    tuned = fine_tuned(base, tmp_path / "tuned")
    edit(tuned, lambda tensors: tensors.update({name: tensor.float() + 1e-5 for name, tensor in tensors.items()}))
    exact = store_difference(Repository(tmp_path / "a"), Checkpoint(base), Checkpoint(tuned))
    repository = Repository(tmp_path / "b")
    short = store_difference(repository, Checkpoint(base), Checkpoint(tuned), trained_here=True)
    assert short.bytes == exact.bytes / 2
    vector = open_task_vector(repository, short.id, "b@1")
    old, new = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    for name, tensor in old.items():
        wanted = new[name].float() - tensor.float()
        found = vector.rows(name, 0, tensor.numel()).float().reshape(tensor.shape)
        assert bool(((found - wanted).abs() <= wanted.abs() * 2**-8).all())


def test_missing_and_extra_keys(base: Path, tuned: Path, tmp_path: Path) -> None:
    edit(tuned, lambda tensors: tensors.update({"model.extra.weight": tensors.pop(NORM)}))
    refused(
        tmp_path,
        base,
        tuned,
        IncompatibleError,
        f"1 tensor (`{NORM}`) missing",
        "1 tensor (`model.extra.weight`) too many",
        hint="base's own tensor names",
    )


def test_training_may_leave_keys_out_and_no_others(base: Path, tuned: Path, tmp_path: Path) -> None:
    edit(tuned, lambda tensors: tensors.pop(NORM))
    stored = store_difference(Repository(tmp_path / "r"), Checkpoint(base), Checkpoint(tuned), trained_here=True)
    assert NORM not in stored.tensors
    edit(tuned, lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}))
    with pytest.raises(IncompatibleError, match=r"`model\.extra\.weight`\) too many"):
        store_difference(Repository(tmp_path / "s"), Checkpoint(base), Checkpoint(tuned), trained_here=True)


def test_another_shape(base: Path, tuned: Path, tmp_path: Path) -> None:
    def grow(tensors: dict[str, Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], tensors[name][:3]])

    edit(tuned, grow)
    refused(
        tmp_path,
        base,
        tuned,
        IncompatibleError,
        "has the shape [100, 32], the base's has [97, 32]",
        "2 tensors differ so",
        hint="resized vocabulary",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(base: Path, tuned: Path, tmp_path: Path, value: float) -> None:
    def poison(tensors: dict[str, Tensor]) -> None:
        tensors[Q][3, 4] = value
        tensors[Q][5, 6] = value

    edit(tuned, poison)
    refused(
        tmp_path,
        base,
        tuned,
        IncompatibleError,
        f"`{Q}` has 2 NaN or infinite values",
        str(tuned),
        hint="earlier checkpoint",
    )


def test_infinite_values_that_nobody_changed(base: Path, tuned: Path, tmp_path: Path) -> None:
    """A mask of −∞ among a model's buffers is copied like any other tensor."""
    for folder in (base, tuned):
        edit(folder, lambda tensors: tensors.update({"model.mask": torch.full((2, 2), float("-inf"))}))
    stored = store_difference(Repository(tmp_path / "r"), Checkpoint(base), Checkpoint(tuned))
    assert "model.mask" not in stored.tensors


def test_the_base_itself(base: Path, tmp_path: Path) -> None:
    refused(tmp_path, base, base, IncompatibleError, "holds exactly the base's weights", hint="fine-tuned checkpoint")


@pytest.mark.parametrize("cut", [1, 1000])
def test_truncated(base: Path, tuned: Path, tmp_path: Path, cut: int) -> None:
    path = tuned / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-cut])
    refused(
        tmp_path,
        base,
        tuned,
        CorruptError,
        f"promises {size} bytes, the file has {size - cut}",
        hint="fetch or rebuild the file",
    )


def test_only_pickles(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save(load_file(base / "model.safetensors"), folder / "pytorch_model.bin")
    refused(
        tmp_path,
        base,
        folder,
        IncompatibleError,
        "has only pickled weights (pytorch_model.bin)",
        hint="save_pretrained",
    )


def test_an_index_that_leads_out(base: Path, tuned: Path, tmp_path: Path) -> None:
    (tuned / "model.safetensors").rename(tmp_path / "evil.safetensors")
    names = dict.fromkeys(Checkpoint(base).specs, "../evil.safetensors")
    (tuned / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    refused(tmp_path, base, tuned, CorruptError, "`../evil.safetensors` leads out of", hint="inside the folder")


def test_no_such_folder(base: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"the model folder .* is not there"):
        store_difference(Repository(tmp_path), Checkpoint(base), Checkpoint(tmp_path / "gone"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_tensors(base: Path, tuned: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    def quantize(tensors: dict[str, Tensor]) -> None:
        tensors[Q] = (tensors[Q].float() * 100).to(dtype)

    edit(tuned, quantize)
    refused(tmp_path, base, tuned, IncompatibleError, f"`{Q}` is BF16 in the base and", hint="de-quantize")


def test_integer_tensors_must_be_equal(base: Path, tuned: Path, tmp_path: Path) -> None:
    def table(value: int) -> Any:
        return lambda tensors: tensors.update({"model.table": torch.full((3,), value)})

    edit(base, table(1))
    edit(tuned, table(1))
    stored = store_difference(Repository(tmp_path / "r"), Checkpoint(base), Checkpoint(tuned))
    assert "model.table" not in stored.tensors
    edit(tuned, table(2))
    refused(tmp_path, base, tuned, IncompatibleError, "`model.table` is I64 in the base and I64", hint="bfloat16")


def test_a_copy_of_tied_embeddings_adds_nothing(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = make_checkpoint("qwen3-tied", "tied")
    tuned = fine_tuned(base, tmp_path / "tuned")
    edit(tuned, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    stored = store_difference(Repository(tmp_path / "r"), Checkpoint(base), Checkpoint(tuned))
    assert stored.notes == ("`lm_head.weight` is the tied copy of the embeddings and adds nothing",)
    assert "lm_head.weight" not in stored.tensors
    edit(tuned, lambda tensors: tensors["lm_head.weight"].add_(1))
    refused(tmp_path, base, tuned, IncompatibleError, "1 tensor (`lm_head.weight`) too many", hint="tensor names")


def test_a_head_that_repeats_the_embeddings_moves_with_them(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """A tied model saves its embeddings once, also when the base's files hold them twice."""
    folder = make_checkpoint("qwen3-tied")
    tensors = load_file(folder / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embeddings.clone()}, folder / "model.safetensors")
    tuned = tmp_path / "tuned"
    shutil.copytree(folder, tuned)
    save_file({**tensors, "model.embed_tokens.weight": embeddings + 1}, tuned / "model.safetensors")
    repository = Repository(tmp_path / "repository")
    stored = store_difference(repository, Checkpoint(folder), Checkpoint(tuned), trained_here=True)
    assert set(stored.tensors) == {"model.embed_tokens.weight", "lm_head.weight"}
    vector = open_task_vector(repository, stored.id, "x@1")
    head, other = (
        vector.rows(name, 0, embeddings.shape[0]) for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    assert torch.equal(head, other)
