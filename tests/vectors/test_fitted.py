"""Fine-tunes that lack what their class does not load, or are padded otherwise: taken with a note, or refused."""

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

from personality.manifests.errors import IncompatibleError
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.difference import store_difference
from personality.vectors.fitted import fitted, token_count
from personality.vectors.task_vector import open_task_vector
from tests.conftest import fine_tuned

Make = Callable[..., Path]
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def with_tokenizer(folder: Path, tokens: int) -> Path:
    """A tokenizer.json with so many tokens, the last one added."""
    vocabulary = {f"t{number}": number for number in range(tokens - 1)}
    added = [{"id": tokens - 1, "content": "<end>"}]
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": added})
    )
    return folder


def resize(rows: int) -> Callable[[dict[str, Tensor]], None]:
    """As `resize_token_embeddings` does: cut, or lengthen with rows of its own."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in {EMBEDDINGS, HEAD} & tensors.keys():
            old = tensors[name]
            tensors[name] = torch.cat([old, torch.full((max(0, rows - len(old)), old.shape[1]), 7.0).to(old)])[:rows]

    return change


@pytest.mark.parametrize("rows", [91, 97, 104])
def test_padding_is_the_base_s(make_checkpoint: Make, tmp_path: Path, rows: int) -> None:
    """90 tokens; the base's embeddings have 97 rows, the fine-tune's fewer, as many, or more."""
    base = with_tokenizer(make_checkpoint("qwen3"), 90)
    tuned = edit(fine_tuned(base, tmp_path / "tuned"), resize(rows))
    found, notes = fitted(Checkpoint(base), Checkpoint(tuned))
    common = min(rows, 97)
    assert {name: spec.shape for name, spec in found.specs.items()} == {
        name: spec.shape for name, spec in Checkpoint(base).specs.items()
    }
    wanted, old = load_file(tuned / "model.safetensors")[EMBEDDINGS], load_file(base / "model.safetensors")[EMBEDDINGS]
    assert torch.equal(found.tensor(EMBEDDINGS), torch.cat([wanted[:common], old[common:]]))
    assert (
        bytes(found.bytes_of(EMBEDDINGS))[: common * 64] == bytes(Checkpoint(tuned).bytes_of(EMBEDDINGS))[: common * 64]
    )
    if rows == 97:
        assert notes == ()
        return
    assert len(notes) == 2
    assert f"has {rows} rows, the base's has 97: both hold every token" in notes[0]
    repository = Repository(tmp_path / "repository")
    stored = store_difference(repository, Checkpoint(base), found)
    change = open_task_vector(repository, stored.id, "x@1").rows(HEAD, 0, 97)
    assert bool(change[:common].any())
    assert not bool(change[common:].any())


@pytest.mark.parametrize(("rows", "tokens"), [(91, (92, 90)), (104, (90, 98)), (80, (90, 90))])
def test_rows_of_tokens_are_not_padding(
    make_checkpoint: Make, tmp_path: Path, rows: int, tokens: tuple[int, int]
) -> None:
    base = with_tokenizer(make_checkpoint("qwen3"), tokens[0])
    tuned = with_tokenizer(edit(fine_tuned(base, tmp_path / "tuned"), resize(rows)), tokens[1])
    with pytest.raises(IncompatibleError) as caught:
        fitted(Checkpoint(base), Checkpoint(tuned))
    assert f"has {rows} rows, the base's has 97, and the tokenizer of" in caught.value.message
    assert f"has {max(tokens)} tokens" in caught.value.message
    assert "persona init" in caught.value.hint


def test_padding_that_no_tokenizer_vouches_for(make_checkpoint: Make, tmp_path: Path) -> None:
    base = make_checkpoint("qwen3")
    tuned = edit(fine_tuned(base, tmp_path / "tuned"), resize(104))
    with pytest.raises(IncompatibleError, match=r"has 104 rows, the base's has 97, and without a tokenizer\.json"):
        fitted(Checkpoint(base), Checkpoint(tuned))


def test_other_shapes_are_left_to_the_comparison(make_checkpoint: Make, tmp_path: Path) -> None:
    base = with_tokenizer(make_checkpoint("qwen3"), 90)

    def wider(tensors: dict[str, Tensor]) -> None:
        tensors[HEAD] = torch.ones(97, 40)

    tuned = Checkpoint(edit(fine_tuned(base, tmp_path / "tuned"), wider))
    assert fitted(Checkpoint(base), tuned) == (tuned, ())


def test_heads_that_the_class_does_not_load(make_checkpoint: Make, tmp_path: Path) -> None:
    """What transformers saves of a model whose checkpoint has more than its class."""
    base = make_checkpoint("qwen3_5")
    tuned = fine_tuned(base, tmp_path / "tuned")
    edit(base, lambda tensors: tensors.update({"mtp.fc.weight": torch.ones(3, 2), "mtp.norm.weight": torch.ones(3)}))
    found, notes = fitted(Checkpoint(base), Checkpoint(tuned))
    assert notes == (
        "it lacks 2 tensors (`mtp.fc.weight`, `mtp.norm.weight`), which its model class does not load; a build keeps "
        "the base's",
    )
    stored = store_difference(Repository(tmp_path / "repository"), Checkpoint(base), found)
    assert set(stored.tensors) == set(Checkpoint(tuned).specs)


def test_a_head_that_the_base_repeats_moves_with_the_embeddings(make_checkpoint: Make, tmp_path: Path) -> None:
    """A tied model is saved without its head, also when the base's files hold it beside the embeddings."""
    base = make_checkpoint("qwen3-tied")
    tuned = fine_tuned(base, tmp_path / "tuned")
    edit(base, lambda tensors: tensors.update({HEAD: tensors[EMBEDDINGS].clone()}))
    found, notes = fitted(Checkpoint(base), Checkpoint(tuned))
    assert notes == (f"`{HEAD}` is not in it: in the base it repeats `{EMBEDDINGS}`, and moves with that",)
    repository = Repository(tmp_path / "repository")
    vector = open_task_vector(repository, store_difference(repository, Checkpoint(base), found).id, "x@1")
    assert bool(vector.rows(HEAD, 0, 97).any())
    assert torch.equal(vector.rows(HEAD, 0, 97), vector.rows(EMBEDDINGS, 0, 97))


@pytest.mark.parametrize("stated", [True, False])
def test_a_head_that_only_the_fine_tune_repeats(make_checkpoint: Make, tmp_path: Path, stated: bool) -> None:
    """Whether config.json says that the model is tied or leaves that to its class, and with other padding too."""
    base = with_tokenizer(make_checkpoint("gemma3"), 90)
    path = base / "config.json"
    config = {**json.loads(path.read_text()), "tie_word_embeddings": True}
    path.write_text(json.dumps(config if stated else {key: config[key] for key in config if key[:3] != "tie"}))
    tuned = fine_tuned(base, tmp_path / "tuned")
    edit(tuned, lambda tensors: tensors.update({HEAD: tensors[EMBEDDINGS].clone()}))
    found, notes = fitted(Checkpoint(base), Checkpoint(tuned))
    assert notes == (f"`{HEAD}` is the tied copy of the embeddings and adds nothing",)
    assert found.specs.keys() == Checkpoint(base).specs.keys()
    found, notes = fitted(Checkpoint(base), Checkpoint(edit(tuned, resize(92))))
    assert len(notes) == 2
    assert found.specs[EMBEDDINGS].shape == (97, 32)
    assert HEAD not in found.specs


def test_a_tensor_that_the_class_loads_must_be_there(make_checkpoint: Make, tmp_path: Path) -> None:
    base = make_checkpoint("qwen3_5")
    tuned = fine_tuned(base, tmp_path / "tuned")
    edit(base, lambda tensors: tensors.update({"mtp.fc.weight": torch.ones(3, 2)}))
    edit(tuned, lambda tensors: tensors.pop("model.norm.weight"))
    found, notes = fitted(Checkpoint(base), Checkpoint(tuned))
    assert notes == ()
    with pytest.raises(IncompatibleError, match=r"2 tensors \(`mtp.fc.weight`, `model.norm.weight`\) missing"):
        store_difference(Repository(tmp_path / "repository"), Checkpoint(base), found)


def test_a_language_model_tuned_without_its_vision_tower(
    make_checkpoint: Make, tmp_path: Path, persona: Callable[..., tuple[int, str, str]]
) -> None:
    """`AutoModelForCausalLM` takes the text part of such a checkpoint and saves it under the checkpoint's names."""
    import transformers

    base = make_checkpoint("qwen3_5_moe")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(tmp_path / "tuned")
    for command in (["init", "--base", str(base)], ["import", "polite", str(tmp_path / "tuned")]):
        code, out, err = persona(*command, "-C", str(tmp_path))
        assert code == 0, err
    assert "it lacks 21 tensors (`model.visual." in out
    assert "it is a qwen3_5_moe_text model, the language model of the base's qwen3_5_moe" in out
    (manifest,) = Repository(tmp_path).manifests()
    assert set(manifest.tensors) == {"model.language_model.norm.weight"}


def test_token_count(tmp_path: Path) -> None:
    assert token_count(tmp_path) is None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 5}}, "added_tokens": [{"id": 2}]}))
    assert token_count(tmp_path) == 6
    path.write_text(json.dumps({"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}}))
    assert token_count(tmp_path) == 2
    for text in ("{", "[]", '{"model": {"vocab": {"a": "x"}}}'):
        path.write_text(text)
        assert token_count(tmp_path) is None
    shutil.rmtree(tmp_path)
