from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality.builds.comparison import agreement, log_probabilities, probe_tokens
from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Personality
from personality.model import load_composed, load_model, load_tokenizer, model_class, read_config, threads_for
from personality.vectors.checkpoint import Checkpoint
from tests.conftest import ARCHITECTURES


def base_alone(folder: Path) -> Composer:
    return Composer(Checkpoint(folder), Personality(base=BaseIdentity(source="b", fingerprint="0" * 64)), {})


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_in_memory_is_what_a_folder_gives(make_checkpoint: Callable[..., Path], kind: str) -> None:
    folder = make_checkpoint(kind)
    composed, loaded = load_composed(base_alone(folder)), load_model(folder)
    ids = probe_tokens(97)
    found = agreement(log_probabilities(composed, ids), log_probabilities(loaded, ids))
    assert found.greatest_difference <= 1e-6
    assert found.greedy == 1.0
    for model in (composed, loaded):
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert type(composed) is type(loaded)
    ours, theirs = composed.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_generation_settings_come_along(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint("llama")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_new_tokens": 7, "eos_token_id": 11}))
    config = load_composed(base_alone(folder)).generation_config
    assert (config.max_new_tokens, config.eos_token_id) == (7, 11)


def test_an_incomplete_checkpoint(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint("llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        IncompatibleError, match=r"no weights for 1 parameters .* `model\.layers\.1\.mlp\.up_proj"
    ) as caught:
        load_composed(base_alone(folder))
    assert "incomplete" in caught.value.hint


def test_an_unknown_architecture(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "perceptron9"}))
    with pytest.raises(IncompatibleError, match=r"cannot read the configuration in .*perceptron9") as caught:
        read_config(folder)
    assert "pip install -U transformers" in caught.value.hint


def test_the_class_that_wrote_the_checkpoint(make_checkpoint: Callable[..., Path]) -> None:
    config = read_config(make_checkpoint("qwen3"))
    assert model_class(config).__name__ == "Qwen3ForCausalLM"
    config.architectures = None
    assert model_class(config).__name__ == "Qwen3ForCausalLM"
    config.architectures = ["NoSuchClass"]
    assert model_class(config).__name__ == "Qwen3ForCausalLM"


def test_no_tokenizer(make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(IncompatibleError, match="there is no usable tokenizer in") as caught:
        load_tokenizer(make_checkpoint("llama"))
    assert "tokenizer files" in caught.value.hint


def test_one_thread_for_a_tiny_model(make_checkpoint: Callable[..., Path]) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threads_for(load_model(make_checkpoint("llama"))):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the second is the checkpoint's own
def test_changing_a_loaded_model_leaves_the_base_alone(
    make_checkpoint: Callable[..., Path], dtype: torch.dtype
) -> None:
    composer = base_alone(make_checkpoint("llama"))
    before = {name: composer.base.tensor(name).clone() for name in composer.base.specs}
    model = load_composed(composer, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(composer.base.tensor(name), value) for name, value in before.items())
