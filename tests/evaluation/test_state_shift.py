"""The state of recurrent layers, against a recurrence that is run by hand token by token, and planted differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from personality.changing_model import ChangingModel
from personality.evaluation.state_shift import recurrent_layers, recurrent_states, separation, state_shift
from personality.evaluation.suite import Row, Turn
from personality.manifests.errors import DataError, IncompatibleError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.model import load_model, load_tokenizer
from personality.versions.changes import add
from tests.conftest import fine_tuned, run_persona
from tests.tiny_chat import chat_base


def rows(*words: str) -> list[Row]:
    return [Row(prompt=(Turn(role="user", content=word),), passes="") for word in words]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    root = tmp_path / "repository"
    chat_base("qwen3_5", root / "base")
    fine_tuned(root / "base", tmp_path / "tuned", size=0.1)
    assert run_persona("init", "--base", "base", cwd=root)[0] == 0
    assert run_persona("import", "polite", str(tmp_path / "tuned"), cwd=root)[0] == 0
    return Repository(root)


def test_the_state_is_that_of_reading_token_by_token(repository: Repository) -> None:
    folder = repository.root / "base"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert recurrent_layers(model) == [0, 1]
    found = recurrent_states(model, tokenizer, rows("a b a"))
    from personality.evaluation.scores import encode, prompt_text

    ids = encode(tokenizer, prompt_text(tokenizer, [{"role": "user", "content": "a b a"}]))
    cache = None
    with torch.inference_mode():
        for token in ids:
            cache = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).past_key_values
    assert cache is not None
    for layer in (0, 1):
        np.testing.assert_allclose(found[0, layer], cache.layers[layer].recurrent_states[0].flatten(), atol=1e-6)


def test_a_version_remembers_otherwise(repository: Repository) -> None:
    version = add(repository, VectorLabel.parse("polite"), scale=1.0).version
    some, others = rows("a", "b a", "a a", "b"), rows("c", "c c", "c d", "d c")
    bench = ChangingModel(repository)
    same = state_shift(bench, version.personality.without("polite"), some, others)
    assert all(item.cosine.value == pytest.approx(1) and item.norm.value == pytest.approx(1) for item in same)
    assert all(item.separation_base == item.separation_version for item in same)
    moved = state_shift(bench, version.personality, some, others)
    assert [item.layer for item in moved] == [0, 1]
    assert all(item.cosine.value < 0.999 for item in moved)
    assert [item.separation_base for item in moved] == [item.separation_base for item in same]
    with pytest.raises(DataError, match="too few"):
        state_shift(bench, version.personality, some, others[:2])


def test_separation() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(2, 200, 16))
    assert separation(noise[0], noise[1]) == pytest.approx(0.5, abs=0.1)
    shifted = noise[1] + 3 * np.eye(16)[0]
    assert separation(noise[0], shifted) > 0.97
    assert separation(shifted, noise[0]) > 0.97
    assert separation(np.zeros((4, 2)), np.zeros((4, 2))) == 0.5


def test_a_model_without_recurrent_layers(playground: Path) -> None:
    repository = Repository(playground)
    model = load_model(repository.root / "base")
    with pytest.raises(IncompatibleError, match="no recurrent layers"):
        recurrent_layers(model)
