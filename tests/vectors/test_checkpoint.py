from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError, PersonaError
from personality.vectors.checkpoint import INDEX, Checkpoint, listing

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(7)}


def single(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def sharded(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": TENSORS["a"]}, folder / "x-1.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, folder / "x-2.safetensors")
    names = {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-2.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": names if weight_map is None else weight_map}))
    return folder


def without_index(folder: Path) -> Path:
    (sharded(folder) / INDEX).unlink()
    return folder


@pytest.mark.parametrize("make", [single, sharded, without_index])
def test_tensors_however_they_are_spread(tmp_path: Path, make: Any) -> None:
    checkpoint = Checkpoint(make(tmp_path / "model"))
    assert {name: str(spec) for name, spec in checkpoint.specs.items()} == {
        "a": "F32 [2, 3]",
        "b": "BF16 [4]",
        "c": "I64 []",
    }
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert bytes(checkpoint.bytes_of("c")) == (7).to_bytes(8, "little")
    assert checkpoint.digest_of("a") == Checkpoint(single(tmp_path / "other")).digest_of("a")


def hub_snapshot(folder: Path) -> Path:
    """As the hub's cache lays a model out: links from the snapshot into `blobs`."""
    files = sharded(folder / "plain")
    blobs, snapshot = folder / "models--x--y/blobs", folder / "models--x--y/snapshots/abc123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(files.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_sharded_model_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    assert Checkpoint(hub_snapshot(tmp_path)).specs.keys() == TENSORS.keys()


def test_a_link_out_of_the_cache_of_the_hub(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path)
    outside = tmp_path / "outside.safetensors"
    save_file({"a": TENSORS["a"]}, outside)
    (snapshot / "x-1.safetensors").unlink()
    (snapshot / "x-1.safetensors").symlink_to(outside)
    with pytest.raises(CorruptError, match="leads out of"):
        Checkpoint(snapshot)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "sub/../../evil.safetensors"])
def test_an_index_that_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path / "evil.safetensors")
    folder = sharded(tmp_path / "model", dict.fromkeys(TENSORS, name))
    with pytest.raises(CorruptError, match=f"the path `{name}` leads out of {folder}") as caught:
        Checkpoint(folder)
    assert "only files inside the folder" in caught.value.hint


def test_an_index_through_a_link(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "evil.safetensors")
    folder = sharded(tmp_path / "model", dict.fromkeys(TENSORS, "link.safetensors"))
    (folder / "link.safetensors").symlink_to(tmp_path / "evil.safetensors")
    with pytest.raises(CorruptError, match=r"the path `link\.safetensors` leads out of"):
        Checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}', "\xff"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    folder = sharded(tmp_path / "model")
    (folder / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(CorruptError, match=f"{INDEX} is not a valid index") as caught:
        Checkpoint(folder)
    assert "fetch the model again" in caught.value.hint


def test_an_index_without_entries(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {})
    with pytest.raises(PersonaError):
        Checkpoint(folder)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    (folder / "x-2.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"there is no file .*x-2\.safetensors"):
        Checkpoint(folder)


def test_an_index_and_files_that_disagree(tmp_path: Path) -> None:
    files = {"a": "x-1.safetensors", "b": "x-2.safetensors", "d": "x-2.safetensors"}
    folder = sharded(tmp_path / "model", files)
    message = r"disagree: 1 tensor \(`d`\) only in the index, 1 tensor \(`c`\) only in the files"
    with pytest.raises(CorruptError, match=message):
        Checkpoint(folder)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    folder = without_index(tmp_path / "model")
    save_file({"a": TENSORS["a"]}, folder / "x-3.safetensors")
    with pytest.raises(CorruptError, match=r"tensor `a` is both in x-1\.safetensors and in x-3\.safetensors") as caught:
        Checkpoint(folder)
    assert "remove the files" in caught.value.hint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl"])
def test_only_pickles(tmp_path: Path, name: str) -> None:
    torch.save(TENSORS, tmp_path / name)
    with pytest.raises(IncompatibleError, match=rf"has only pickled weights \({name}\)") as caught:
        Checkpoint(tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_no_weights_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there are no \.safetensors files in"):
        Checkpoint(tmp_path)
    with pytest.raises(NotFoundError, match=r"the model folder .*gone is not there"):
        Checkpoint(tmp_path / "gone")


def test_listing() -> None:
    assert listing([]) == "0 tensors"
    assert listing(["a"]) == "1 tensor (`a`)"
    assert listing(list("abcd")) == "4 tensors (`a`, `b`, `c`, …)"


def test_two_sets_of_weights_in_one_folder(tmp_path: Path) -> None:
    """transformers would load the single file, others the shards: neither is guessed."""
    folder = sharded(tmp_path / "model")
    save_file({"x": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CorruptError, match=r"has both model\.safetensors and model\.safetensors\.index\.json"):
        Checkpoint(folder)
