from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from personality.manifests.errors import PersonaError, UsageError
from personality.vectors.extraction.capture import BLOCK, activations, pair_activations
from personality.vectors.extraction.reading import Reading
from personality.vectors.steering.decoder_layers import decoder, decoder_layers
from tests.conftest import ARCHITECTURES
from tests.tiny_readings import make_pairs, make_reading, tiny_model


def gathered(model: nn.Module, readings: list[Reading], *, batch_tokens: int | None = None) -> Tensor:
    """(n, L, d) in the order of the readings."""
    parts = list(activations(model, readings, batch_tokens=batch_tokens))
    assert sorted(index for rows, _ in parts for index in rows) == list(range(len(readings)))
    result = torch.zeros(len(readings), *parts[0][1].shape[1:])
    for rows, found in parts:
        result[rows] = found
    return result


def some_readings(count: int = 14, seed: int = 0) -> list[Reading]:
    rng = random.Random(seed)
    return [make_reading(rng) for _ in range(count)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_is_what_transformers_calls_hidden_states(kind: str) -> None:
    model, readings = tiny_model(kind), some_readings()
    found = gathered(model, readings)
    norm = decoder(model)[0].get_submodule("norm")
    for reading, rows in zip(readings, found, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([reading.ids]), output_hidden_states=True).hidden_states
        for layer, state in enumerate(states[1:-1]):
            expected = state[0, reading.start : reading.stop].mean(0)
            torch.testing.assert_close(rows[layer], expected, atol=1e-5, rtol=1e-5)
        if reading.stop == reading.start + 1:  # the last state is after the final norm, so only single tokens compare
            torch.testing.assert_close(norm(rows[-1]), states[-1][0, reading.start], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_batch_changes_nothing(kind: str) -> None:
    model, readings = tiny_model(kind), some_readings()
    alone = gathered(model, readings, batch_tokens=1)
    together = gathered(model, readings)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert float(alone.std(0).min()) > 1e-3  # readings do differ everywhere


def test_batches_stay_within_their_tokens() -> None:
    model, readings = tiny_model("llama"), some_readings(30)
    widths = []
    decoder(model)[0].register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    list(activations(model, readings, batch_tokens=64))
    assert len(widths) > 3
    assert all(rows * width <= 64 for rows, width in widths)


def test_what_follows_the_reading_is_not_computed() -> None:
    model = tiny_model("llama")
    whole = Reading(tuple(range(20)), 4, 6)
    cut = Reading(tuple(range(6)), 4, 6)
    widths = []
    decoder(model)[0].register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    torch.testing.assert_close(gathered(model, [whole]), gathered(model, [cut]))
    assert widths == [6, 6]


def test_computes_no_logits() -> None:
    model = tiny_model("qwen3")
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("logits were computed"))
    list(activations(model, some_readings(3)))


def test_layers_may_return_tuples() -> None:
    """As those of older transformers do."""

    class Tupled(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, str]:
            return self.layer(*args, **kwargs), "weights"

    model, readings = tiny_model("llama"), some_readings(4)
    expected = gathered(model, readings)
    owner = decoder(model)[0]
    owner.layers = nn.ModuleList(Tupled(layer) for layer in decoder_layers(model))
    owner.forward = lambda input_ids, **_: _run(owner, input_ids)
    torch.testing.assert_close(gathered(model, readings), expected, atol=1e-5, rtol=1e-5)


def _run(owner: Any, ids: Tensor) -> None:
    hidden = owner.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    rotary = owner.rotary_emb(hidden, positions)
    for layer in owner.layers:
        hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)[0]


def test_half_precision_is_averaged_in_float32() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    reading = Reading(tuple(range(40)), 0, 40)
    with torch.no_grad():
        states = model(torch.tensor([reading.ids]), output_hidden_states=True).hidden_states
    found = gathered(model, [reading])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0, 0], states[1][0].float().mean(0), atol=1e-6, rtol=1e-6)


def test_nothing_stays_behind() -> None:
    model = tiny_model("llama").train()
    frozen = model.model.layers[1].eval()
    list(activations(model, some_readings(3)))
    assert model.training and model.model.layers[0].training and not frozen.training
    assert not any(module._forward_hooks for module in model.modules())
    decoder_layers(model)[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        list(activations(model, some_readings(3)))
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_refuses_activations_that_are_no_numbers() -> None:
    model = tiny_model("llama")
    readings = [Reading((3, 4), 1, 2), Reading((5, 6, 7), 2, 3)]
    with torch.no_grad():
        model.model.embed_tokens.weight[6] = float("inf")
    with pytest.raises(
        PersonaError, match=r"b:2: the activations after layer 0 are NaN or infinite .*float32"
    ) as caught:
        list(activations(model, readings, labels=["a:1", "b:2"]))
    assert "bfloat16 or float32" in caught.value.hint
    # The damage lies behind the reading: it is never seen.
    list(activations(model, [Reading((5, 6, 7), 0, 1)]))
    with pytest.raises(PersonaError, match=r"^pairs.jsonl:1 \(negative\): "):
        pair = make_pairs(1)[0]
        broken = Reading((6, 6), 0, 2)
        clean = Reading((3, 4), 0, 2)
        list(pair_activations(model, [type(pair)(clean, broken, pair.where)]))


@pytest.mark.parametrize(("start", "stop"), [(2, 2), (3, 2), (-1, 1), (0, 4)])
def test_refuses_a_span_outside_of_its_text(start: int, stop: int) -> None:
    with pytest.raises(UsageError, match="of 3 tokens"):
        list(activations(tiny_model("llama"), [Reading((1, 2, 3), start, stop)]))


def test_pairs_come_in_blocks_that_order_does_not_change() -> None:
    model, pairs = tiny_model("llama"), make_pairs(BLOCK + 5)
    seen: list[tuple[int, int]] = []
    blocks = list(pair_activations(model, pairs, on_batch=lambda done, total: seen.append((done, total))))
    assert [len(rows) for rows, _ in blocks] == [BLOCK, 5]
    assert seen[-1] == (2 * len(pairs), 2 * len(pairs))
    assert seen == sorted(seen)
    turned = list(pair_activations(model, pairs[::-1], batch_tokens=50))
    for (rows, found), (other_rows, other) in zip(blocks, turned, strict=True):
        assert [pairs[i].where for i in rows] == [pairs[::-1][i].where for i in other_rows]
        torch.testing.assert_close(found, other, atol=1e-5, rtol=1e-5)
    rows, found = blocks[0]
    expected = gathered(model, [pairs[rows[7]].positive, pairs[rows[7]].negative])
    torch.testing.assert_close(found[7], expected, atol=1e-5, rtol=1e-5)
