"""Predicted against actual: a shift that is known is measured as what it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from personality.evaluation.suite import Probe, Row, Turn
from personality.making.shift import ReplyReading, example_readings, measure_shift, probe_readings
from personality.manifests.errors import DataError
from personality.manifests.personality_record import LayerRange
from personality.manifests.steering_record import Mode, Positions
from personality.model import load_model
from personality.vectors.steering.decoder_layers import decoder_layers
from personality.vectors.steering.hooks import attach
from personality.vectors.steering.injection import injections
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.steering.steering_vector import Gate, SteeringVector
from personality.vectors.training.examples import Example
from tests.conftest import tiny_checkpoint
from tests.vectors.training.conftest import make_tokenizer

TEXTS = [ReplyReading(tuple(range(first, first + 5)), 4, 5, 5) for first in range(1, 7)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny") / "base"))


def direction(seed: int) -> torch.Tensor:
    found: torch.Tensor = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=0)


def shifted(base: Any, shift: torch.Tensor) -> Any:
    model = copy.deepcopy(base)
    last = decoder_layers(model)[-1]
    last.register_forward_hook(
        lambda module, args, output: (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift
    )
    return model


def test_training_that_does_what_steering_does_is_the_scale_along_it(base: Any) -> None:
    vector = SteeringVector({2: 4 * direction(0)}, "decision", "add", (2,))
    found = measure_shift(base, shifted(base, 0.7 * 4 * direction(0)), TEXTS, vector, scale=1.4).layers[0]
    assert found.layer == 2
    assert (found.cosine, found.agreement, found.consistency) == pytest.approx((1, 1, 1), abs=1e-3)
    assert (found.length, found.steered_length, found.ratio) == pytest.approx((2.8, 5.6, 0.5), abs=1e-3)


@pytest.mark.parametrize("gated", [False, True], ids=["always", "conditional"])
@pytest.mark.parametrize("positions", ["decision", "response", "all"])
@pytest.mark.parametrize("mode", ["add", "project", "norm-preserving"])
def test_the_steered_base_itself_is_what_was_predicted_in_every_layer(
    mode: Mode, positions: Positions, gated: bool, base: Any
) -> None:
    directions = {layer: (1 if mode == "project" else 3) * direction(layer) for layer in (0, 1, 2)}
    # About half of the prompts pass, by their last token, which is not the last one of the texts.
    gate = Gate(0, direction(5), 0.0) if gated else None
    vector = SteeringVector(directions, positions, mode, (0, 1, 2), gate=gate)
    start, stop = {"decision": (2, 3), "response": (2, 5), "all": (0, 5)}[positions]
    texts = [ReplyReading(tuple(range(first, first + stop)), start, stop, 3) for first in range(1, 20)]
    model = copy.deepcopy(base)
    attach(model, injections(vector, 0.8))
    with reply_starts([3] * len(texts)):  # of the model that is steered here; they are one batch
        found = measure_shift(base, model, texts, vector, scale=0.8).layers
    assert [item.layer for item in found] == [0, 1, 2]
    assert [item.ratio for item in found] == pytest.approx([1.0] * 3, abs=1e-5)
    assert [item.agreement for item in found] == pytest.approx([1.0] * 3, abs=1e-5)
    if mode == "add" and not gated:
        # Each layer adds a third of the scale; what the earlier ones added has come along.
        assert found[0].length == pytest.approx(0.8, rel=1e-4) and found[2].length > 1.1 * found[0].length


def test_training_that_goes_elsewhere_has_length_and_no_cosine(base: Any) -> None:
    along = direction(0)
    across = direction(1) - (direction(1) @ along) * along
    vector = SteeringVector({2: 2 * along}, "response", "add", (2,))
    found = measure_shift(base, shifted(base, 3 * across / across.norm()), TEXTS, vector, held_out=False)
    assert abs(found.layers[0].cosine) < 1e-3 and abs(found.layers[0].agreement) < 1e-3
    assert found.layers[0].ratio == pytest.approx(1.5, rel=1e-3)
    assert found.positions == "response" and not found.held_out and found.chance == pytest.approx(32**-0.5)


def test_only_the_layers_in_use_are_looked_at(base: Any) -> None:
    vector = SteeringVector({1: direction(0), 2: direction(1)}, "all", "add", (1, 2))
    model = shifted(base, direction(1))
    both = measure_shift(base, model, TEXTS, vector).layers
    assert [item.layer for item in both] == [1, 2] and both[0].length == 0 and both[0].cosine == 0
    assert both[0].steered_length == pytest.approx(0.5, rel=1e-3)  # two layers share the strength of scale 1
    assert both[1].length == pytest.approx(1, rel=1e-3) and both[1].cosine == pytest.approx(1, rel=1e-3)
    last = measure_shift(base, model, TEXTS, vector, layers=LayerRange(first=2, last=2)).layers
    assert [item.layer for item in last] == [2] and last[0].ratio == pytest.approx(1, rel=1e-3)
    still = measure_shift(base, model, TEXTS, vector, scale=0.0).layers
    assert still[0].ratio is None and still[0].as_json()["ratio"] is None
    with pytest.raises(DataError, match="no texts"):
        measure_shift(base, model, [], vector)


@pytest.mark.parametrize(
    ("positions", "tokens"), [("decision", slice(-6, -5)), ("response", slice(-6, -1)), ("all", slice(0, -1))]
)
def test_texts_are_read_where_the_vector_acts(positions: Positions, tokens: slice) -> None:
    """`Hi` is two bytes and an end: the reply is predicted from the header's last token on."""
    tokenizer = make_tokenizer()
    prompt, reply = [{"role": "user", "content": "?"}], [{"role": "assistant", "content": "Hiya"}]
    ids = tokenizer(tokenizer.apply_chat_template([*prompt, *reply], tokenize=False), add_special_tokens=False)[
        "input_ids"
    ]
    asked, answer = (Turn(**prompt[0]),), (Turn(**reply[0]),)
    text = Probe("x", None, (Row(prompt=asked, passes="", chosen=answer, rejected=answer),))
    bare = Probe("y", None, (Row(prompt=asked, passes=""),))
    found = probe_readings(tokenizer, [text, bare], positions)
    assert len(found) == 1
    stop = ids.index(tokenizer.eos_token_id, len(ids) - 3) + 1
    kept = ids[:stop]
    assert list(range(found[0].start, found[0].stop)) == list(range(len(kept)))[tokens]
    assert found[0].reply == len(kept) - 5
    plain = example_readings(tokenizer, [Example("a b", " c")], positions)[0]
    assert plain.stop <= 5 and plain.start == {"decision": 2, "response": 2, "all": 0}[positions]
