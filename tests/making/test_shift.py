"""Predicted against actual: a shift that is known is measured as what it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from personality.evaluation.suite import Probe, Row, Turn
from personality.making.shift import example_readings, measure_shift, probe_readings
from personality.manifests.errors import DataError
from personality.manifests.personality_record import LayerRange
from personality.manifests.steering_record import Positions
from personality.model import load_model
from personality.vectors.extraction.reading import Reading
from personality.vectors.steering.decoder_layers import decoder_layers
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.training.examples import Example
from tests.conftest import tiny_checkpoint
from tests.vectors.training.conftest import make_tokenizer

TEXTS = [Reading(tuple(range(first, first + 5)), 4, 5) for first in range(1, 7)]


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
    found = measure_shift(base, shifted(base, 0.7 * 4 * direction(0)), TEXTS, vector).layers[0]
    assert found.layer == 2
    assert (found.cosine, found.along, found.length, found.consistency) == pytest.approx((1, 0.7, 0.7, 1), abs=1e-3)


def test_training_that_goes_elsewhere_has_length_and_no_cosine(base: Any) -> None:
    along = direction(0)
    across = direction(1) - (direction(1) @ along) * along
    vector = SteeringVector({2: 2 * along}, "response", "add", (2,))
    found = measure_shift(base, shifted(base, 3 * across / across.norm()), TEXTS, vector, held_out=False)
    assert abs(found.layers[0].cosine) < 1e-3 and found.layers[0].length == pytest.approx(1.5, rel=1e-3)
    assert found.positions == "response" and not found.held_out and found.chance == pytest.approx(32**-0.5)


def test_only_the_layers_in_use_are_looked_at_in_their_own_units(base: Any) -> None:
    vector = SteeringVector({1: direction(0), 2: direction(1)}, "all", "add", (1, 2))
    model = shifted(base, direction(1))
    both = measure_shift(base, model, TEXTS, vector).layers
    assert [item.layer for item in both] == [1, 2] and both[0].length == 0 and both[0].cosine == 0
    assert both[1].along == pytest.approx(2, rel=1e-3)  # two layers share the strength of scale 1
    last = measure_shift(base, model, TEXTS, vector, layers=LayerRange(first=2, last=2)).layers
    assert [item.layer for item in last] == [2] and last[0].along == pytest.approx(1, rel=1e-3)
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
    plain = example_readings(tokenizer, [Example("a b", " c")], positions)[0]
    assert plain.stop <= 5 and plain.start == {"decision": 2, "response": 2, "all": 0}[positions]
