"""Attention onto the direction, against attention maps taken by hand, and the playground's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from personality.changing_model import ChangingModel
from personality.evaluation.attention_shift import Passage, attention_layers, attention_mass, attention_shift, passage
from personality.evaluation.suite import Row, Turn, read_suite
from personality.manifests.errors import DataError, IncompatibleError
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.model import load_model, load_tokenizer
from personality.playground.repository import base_folder
from personality.versions.changes import add
from tests.conftest import tiny_checkpoint

ROW = Row(prompt=(Turn(role="user", content="Please paint the ladder red."),), passes="")


def test_the_direction_is_the_last_user_turn() -> None:
    tokenizer = load_tokenizer(base_folder())
    turns = (Turn(role="user", content="Red."), Turn(role="assistant", content="Okay."), ROW.prompt[0])
    found = passage(tokenizer, Row(prompt=turns, passes=""), [5, 6])
    start, stop = found.direction
    assert tokenizer.decode(found.ids[start:stop]).strip() == ROW.prompt[0].content
    assert found.ids[found.reply :] == (5, 6)
    with pytest.raises(DataError, match="is not in the chat"):
        passage(tokenizer, Row(prompt=(Turn(role="system", content="Be brief."),), passes=""), [5])


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen3_5"])
def test_masses_are_those_of_the_maps(kind: str, tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint(kind, tmp_path / "base"))
    before = model.config._attn_implementation
    item = Passage(tuple(range(3, 15)), (2, 6), 9)
    found = attention_mass(model, [item])
    layers = attention_layers(model)
    assert layers == ([2] if kind == "qwen3_5" else [0, 1, 2])
    assert found.shape == (1, len(layers), 4)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        maps = model(input_ids=torch.tensor([item.ids]), output_attentions=True).attentions
    # Decision tokens predict the reply: from the prompt's last (8) to the reply's last but one (10).
    expected = np.asarray([layer[0, :, 8:11, 2:6].sum(-1).mean(-1).numpy() for layer in maps])
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    model.set_attn_implementation(before)
    attention_mass(model, [item])
    assert model.config._attn_implementation == before


def test_a_version_beside_the_base_and_a_control(repository_copy: Path) -> None:
    repository = Repository(repository_copy)
    listening = add(repository, VectorLabel.parse("listening"), scale=1.0).version.personality
    concise = listening.without("listening")
    concise = add(repository, VectorLabel.parse("concise"), scale=1.0).version.personality.without("listening")
    probes = {probe.name: probe for probe in read_suite(repository, ["listening"])}
    rows = probes["listening.accept"].rows[:6]
    found = attention_shift(ChangingModel(repository), listening, rows, control=concise)
    assert [item.layer for item in found.forced] == [0, 1, 2, 3] == [item.layer for item in found.control_own]
    for item in (*found.forced, *found.own):
        assert 0 < item.base.value < 1 and item.base.n == len(rows)
        assert item.change.value == pytest.approx(item.version.value - item.base.value)
        assert np.mean(item.heads) == pytest.approx(item.change.value)
    # The same text is read in both arms of `forced`: the base's part is the same in `own`.
    assert [item.base for item in found.forced] == [item.base for item in found.own]
    # The base beside itself has not moved.
    same = attention_shift(ChangingModel(repository), listening.without("listening"), rows)
    assert all(item.change.value == 0 for item in (*same.forced, *same.own))


def test_a_model_without_attention(tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint("qwen3_5", tmp_path / "base"))
    model.config.get_text_config().layer_types = ["linear_attention"] * 3
    with pytest.raises(IncompatibleError, match="no attention layers"):
        attention_layers(model)
