from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.errors import DataError
from personality.manifests.steering_record import Mode, Positions
from personality.vectors.extraction import iso_kl
from personality.vectors.extraction.iso_kl import (
    BasePredictions,
    calibrate_layer,
    calibrate_layers,
    joint_factor,
    percentile,
    smallest_crossing,
)
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection, injections
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.training.tokens import Encoded

EVERYWHERE: tuple[Positions, ...] = ("all", "response", "decision")


@lru_cache(maxsize=1)
def playground_texts() -> tuple[Any, tuple[Encoded, ...]]:
    from personality.model import load_model, load_tokenizer
    from personality.playground.behaviors import general
    from personality.playground.repository import base_folder
    from personality.vectors.training.examples import parse_example
    from personality.vectors.training.tokens import encode

    tokenizer = load_tokenizer(base_folder())
    examples = [parse_example(row, where="general", need_rejected=False) for row in general(24, 0)]
    texts = tuple(encode(tokenizer, item.prompt, item.chosen, 1 << 20) for item in examples)
    return load_model(base_folder()), texts


def random_direction(width: int, seed: int) -> Tensor:
    direction = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(direction, dim=0)


@pytest.fixture
def tiny(make_checkpoint: Callable[..., Path]) -> Any:
    from personality.model import load_model

    return load_model(make_checkpoint("qwen3"))


def tiny_texts(count: int = 7) -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    texts = []
    for number in range(count):
        length = 6 + 3 * (number % 4)
        ids = tuple(int(x) for x in torch.randint(97, (length,), generator=generator))
        texts.append(Encoded(ids, 3, length))
    return texts


@pytest.mark.parametrize("positions", EVERYWHERE)
def test_divergence_is_that_of_each_text_put_through_alone(tiny: Any, positions: Positions) -> None:
    texts = tiny_texts()
    acting = [Injection(1, random_direction(32, 3) * 2, positions, "add")]
    found = BasePredictions(tiny, texts, positions).drift(tiny, acting)

    expected = []
    for text in sorted(texts, key=lambda text: len(text.ids)):
        ids = torch.tensor([text.ids])
        with torch.no_grad(), reply_starts([text.start]):
            before = tiny(input_ids=ids).logits[0].double().log_softmax(-1)
            with steered(tiny, acting):
                after = tiny(input_ids=ids).logits[0].double().log_softmax(-1)
        stop = text.start + 1 if positions == "decision" else text.stop
        for place in range(text.start, stop):
            p, q = before[place - 1], after[place - 1]
            expected.append((float((p.exp() * (p - q)).sum()), -float(q[text.ids[place]])))

    # Texts of one length may stand in any order.
    got = sorted(zip(found.kl.tolist(), found.nll.tolist(), strict=True))
    for (kl, nll), (kl_expected, nll_expected) in zip(got, sorted(expected), strict=True):
        assert kl == pytest.approx(kl_expected, abs=2e-5)
        assert nll == pytest.approx(nll_expected, abs=1e-4)


def test_nothing_acting_is_no_divergence_and_the_same_losses(tiny: Any) -> None:
    base = BasePredictions(tiny, tiny_texts(), "response")
    drift = base.drift(tiny, [])
    assert float(drift.kl.max()) == 0.0
    assert torch.equal(drift.nll, base.nll)


def test_batches_do_not_change_what_is_found(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    acting = [Injection(0, random_direction(32, 5), "all", "add")]
    whole = BasePredictions(tiny, tiny_texts(), "all").drift(tiny, acting)
    monkeypatch.setattr(iso_kl, "_BATCH_LOGITS", 97 * 16)
    parts = BasePredictions(tiny, tiny_texts(), "all").drift(tiny, acting)
    assert parts.kl.shape == whole.kl.shape
    assert torch.allclose(parts.kl, whole.kl, atol=1e-5)


def test_no_more_tokens_are_kept_than_said(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tiny_texts()
    everything = sum(text.stop - text.start for text in texts)
    assert BasePredictions(tiny, texts, "response").tokens == everything
    assert BasePredictions(tiny, texts, "response", most_tokens=10).tokens == 10
    assert BasePredictions(tiny, texts, "decision").tokens == len(texts)
    assert BasePredictions(tiny, texts, "decision", most_tokens=3).tokens == 3
    monkeypatch.setattr(iso_kl, "_KEPT_BYTES", 4 * 97 * 8)  # room for eight rows of the vocabulary
    bounded = BasePredictions(tiny, texts, "response")
    assert bounded.tokens == 8
    assert sum(kept.log_probs.numel() * 4 for kept in bounded._base) <= 4 * 97 * 8


def test_without_text_there_is_nothing_to_calibrate_on(tiny: Any) -> None:
    with pytest.raises(DataError, match="no text"):
        BasePredictions(tiny, [], "all")


def test_a_model_that_predicts_nan_is_infinitely_far(tiny: Any) -> None:
    drift = BasePredictions(tiny, tiny_texts(), "all").drift(
        tiny, [Injection(0, torch.full((32,), math.inf), "all", "add")]
    )
    assert drift.kl_95 == math.inf


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_percentile_is_the_linear_one(values: list[float], quantile: float) -> None:
    import numpy as np

    found = percentile(torch.tensor(values, dtype=torch.float64), quantile)
    assert found == pytest.approx(float(np.percentile(values, quantile * 100)), rel=1e-9, abs=1e-9)


def test_an_infinite_token_counts_only_where_the_percentile_touches_it() -> None:
    values = torch.ones(100)
    values[0] = math.inf
    assert percentile(values) == 1.0
    values[:6] = math.inf
    assert percentile(values) == math.inf


@settings(max_examples=200)
@given(
    at=st.floats(1e-3, 1e3),
    power=st.floats(0.3, 4),
    start=st.floats(1e-4, 1e4),
)
def test_the_crossing_of_a_rising_curve_is_found(at: float, power: float, start: float) -> None:
    found = smallest_crossing(lambda c: (c / at) ** power, start, most=1e9, evaluations=60)
    assert found.value == pytest.approx(1.0, rel=0.021)
    assert found.reached
    assert found.at == pytest.approx(at, rel=0.03 / power)


@pytest.mark.parametrize("start", [0.01, 0.25, 1.0, 8.0])
def test_a_divergence_shaped_curve_takes_few_evaluations(start: float) -> None:
    calls = []

    def curve(c: float) -> float:
        calls.append(c)
        return 6 * c**2 / (1 + c**2)  # a square at first, then level

    found = smallest_crossing(curve, start, most=100.0)
    assert found.reached
    assert found.evaluations == len(calls) <= 12
    assert found.at == pytest.approx(math.sqrt(1 / 5), rel=0.02)


def test_of_several_crossings_the_smallest_is_found() -> None:
    def hill(c: float) -> float:  # above 1 between 1 and 4, below until 32, above from there on
        return c if c < 4 else (0.5 if c < 32 else c)

    assert smallest_crossing(hill, 0.1, most=1000.0).at == pytest.approx(1.0, rel=0.02)


def test_a_curve_that_never_gets_there_says_so() -> None:
    found = smallest_crossing(lambda c: 0.4 * c / (1 + c), 0.1, most=50.0)
    assert found.at == 50.0
    assert found.value == pytest.approx(0.4 * 50 / 51)
    assert not found.reached


def test_a_jump_over_the_target_ends_at_its_edge() -> None:
    found = smallest_crossing(lambda c: 0.1 if c < 2 else math.inf, 0.1, most=50.0, evaluations=40)
    assert found.at == pytest.approx(2.0, rel=1e-3)
    assert found.value == 0.1


def test_evaluations_are_bounded() -> None:
    found = smallest_crossing(lambda c: 2.0 if c > 1 else 1e-9, 1e-6, most=1e9, evaluations=7)
    assert found.evaluations <= 7


@pytest.mark.parametrize("positions", EVERYWHERE)
def test_scale_one_is_one_nat_whatever_layer_and_direction(positions: Positions) -> None:
    model, texts = playground_texts()
    base = BasePredictions(model, texts, positions)
    modes: tuple[Mode, ...] = ("add", "norm-preserving")
    for layer, mode, seed in ((0, modes[0], 1), (2, modes[1], 2), (3, modes[0], 3)):
        direction = random_direction(96, seed)
        found = calibrate_layer(model, base, layer, direction, positions, mode, activation=1000.0)
        again = base.drift(model, [Injection(layer, direction * found.at, positions, mode)]).kl_95
        assert again == pytest.approx(1.0, rel=0.021), (layer, mode)
        assert found.evaluations <= iso_kl.EVALUATIONS


def test_layers_together_are_one_nat_too() -> None:
    model, texts = playground_texts()
    base = BasePredictions(model, texts, "response")
    directions = {layer: random_direction(96, layer) for layer in (1, 2, 3)}
    directions[0] = torch.zeros(96)
    seen: list[tuple[int, int]] = []
    found = calibrate_layers(
        model,
        base,
        directions,
        "response",
        "add",
        activations=dict.fromkeys(range(4), 1000.0),
        on_layer=lambda done, of: seen.append((done, of)),
    )
    assert sorted(found) == [1, 2, 3]  # a direction of length 0 has no strength
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    tensors = {layer: directions[layer] * crossing.at for layer, crossing in found.items()}
    vector = SteeringVector(tensors, "response", "add", (2, 3))
    joint = joint_factor(model, base, vector)
    whole = SteeringVector(tensors, "response", "add", (2, 3), joint.at)
    assert base.drift(model, injections(whole, 1.0)).kl_95 == pytest.approx(1.0, rel=0.021)
    # Without the factor it would be something else: the test can fail.
    assert joint.at != pytest.approx(1.0, rel=0.05)


def test_taking_out_is_never_more_than_all() -> None:
    model, texts = playground_texts()
    base = BasePredictions(model, texts, "all")
    found = calibrate_layer(model, base, 3, random_direction(96, 4), "all", "project", activation=1000.0)
    assert found.at == 1.0
    assert 0 < found.value < 1
    assert not found.reached
