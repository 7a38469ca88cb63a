from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import IncompatibleError, NotFoundError
from personality.vectors.base import chat_template, fingerprint, locate, open_base
from personality.vectors.checkpoint import Checkpoint


@pytest.fixture
def base(make_checkpoint: Callable[..., Path]) -> Path:
    folder = make_checkpoint("llama")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def copy(base: Path, name: str) -> Path:
    return Path(shutil.copytree(base, base.parent / name))


def test_shards_do_not_enter(base: Path, make_checkpoint: Callable[..., Path]) -> None:
    spread = make_checkpoint("llama", "spread", shard_size="40KB")
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(base / name, spread / name)
    assert len(list(spread.glob("*.safetensors"))) > 1
    assert fingerprint(Checkpoint(spread)) == fingerprint(Checkpoint(base))


def test_places_and_library_versions_do_not_enter(base: Path) -> None:
    other = copy(base, "other")
    config = json.loads((other / "config.json").read_text())
    config |= {"_name_or_path": "/elsewhere", "transformers_version": "9.9"}
    (other / "config.json").write_text(json.dumps(config, indent=7))
    assert fingerprint(Checkpoint(other)).id == fingerprint(Checkpoint(base)).id


def change_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, path, {"format": "pt"})


def rename_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.scale"] = tensors.pop("model.norm.weight")
    save_file(tensors, path, {"format": "pt"})


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight": (change_weights, "weights"),
    "a name": (rename_tensor, "weights"),
    "a setting": (change_config, "config"),
    "the tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{ }"), "tokenizer"),
    "another tokenizer file": (lambda folder: (folder / "merges.txt").write_text("a b"), "tokenizer"),
    "the chat template": (lambda folder: (folder / "chat_template.jinja").write_text("x"), "chat template"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_makes_another_base(base: Path, what: str) -> None:
    change, part = CHANGES[what]
    other = copy(base, "other")
    change(other)
    first, second = fingerprint(Checkpoint(base)), fingerprint(Checkpoint(other))
    assert first.id != second.id
    assert first.differences(second) == [part]


def test_an_edited_base_is_refused_in_spite_of_the_cache(base: Path) -> None:
    cache = base.parent / "cache.json"
    identity = BaseIdentity(source=str(base), fingerprint=fingerprint(Checkpoint(base), cache).id)
    assert open_base(identity, base.parent, cache).specs
    change_weights(base)
    for where in (cache, None):
        with pytest.raises(
            IncompatibleError, match=f"this repository is made for {identity.fingerprint[:12]}"
        ) as caught:
            open_base(identity, base.parent, where)
        assert str(base) in caught.value.message
        assert "persona init" in caught.value.hint


def test_the_chat_template_wherever_it_is(tmp_path: Path) -> None:
    assert chat_template(tmp_path) == ""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "inside"}))
    assert chat_template(tmp_path) == "inside"
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert chat_template(tmp_path) == "beside"


def test_locate(tmp_path: Path) -> None:
    (tmp_path / "models/one").mkdir(parents=True)
    assert locate("models/one", "", tmp_path) == ((tmp_path / "models/one").resolve(), "")
    for source in ("./models/two", "/nowhere/at/all"):
        with pytest.raises(NotFoundError, match=f"the base `{source}` is not there: no folder") as caught:
            locate(source, "", tmp_path)
        assert "persona.toml" in caught.value.hint


def test_a_model_that_the_hub_cannot_give(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="the base `nobody/nothing` is neither a folder here nor") as caught:
        locate("nobody/nothing", "", tmp_path)
    assert "hf auth login" in caught.value.hint


def test_a_folder_without_config(base: Path) -> None:
    (base / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"has no config\.json"):
        fingerprint(Checkpoint(base))
