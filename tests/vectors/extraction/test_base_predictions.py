from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.errors import DataError
from personality.manifests.steering_record import Positions
from personality.vectors.extraction import base_predictions
from personality.vectors.extraction.base_predictions import BasePredictions, percentile
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.training.tokens import Encoded

EVERYWHERE: tuple[Positions, ...] = ("all", "response", "decision")


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
    assert passes_of(tiny, tiny_texts()) == 1
    with monkeypatch.context() as patched:
        patched.setattr(base_predictions, "_BATCH_LOGITS", 97 * 16)
        assert 1 < passes_of(tiny, tiny_texts()) < 7
        parts = BasePredictions(tiny, tiny_texts(), "all").drift(tiny, acting)
    assert parts.kl.shape == whole.kl.shape
    assert torch.allclose(parts.kl, whole.kl, atol=1e-5)
    with monkeypatch.context() as patched:
        patched.setattr(base_predictions, "default_tokens", lambda model: 30)  # two texts of 15 tokens
        assert 1 < passes_of(tiny, tiny_texts()) < 7


def test_long_prompts_do_not_make_small_batches(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tuple(number % 97 for number in range(60))
    monkeypatch.setattr(base_predictions, "_BATCH_LOGITS", 97 * 4 * 8)  # less than one prompt's tokens
    assert passes_of(tiny, [Encoded(ids, 52, 60)] * 4) == 1
    assert passes_of(tiny, [Encoded(ids, 52, 60)] * 5) == 2


def passes_of(model: Any, texts: list[Encoded]) -> int:
    return len(list(BasePredictions(model, texts, "all")._batches(model)))


def test_every_text_gives_its_share_of_the_tokens(tiny: Any) -> None:
    ids = tuple(number % 97 for number in range(103))
    base = BasePredictions(tiny, [Encoded(ids, 3, 103)] * 5, "response", most_tokens=200)
    assert (base.tokens, base.count) == (200, 5)  # 40 each
    many = BasePredictions(tiny, [Encoded(ids, 3, 103)] * 50, "response", most_tokens=200)
    assert (many.tokens, many.count) == (200, 13)  # 16 each, and 8
    decisions = BasePredictions(tiny, [Encoded(ids[:5], 3, 5)] * 150, "decision")
    assert (decisions.tokens, decisions.count) == (128, 128)


def test_no_more_tokens_are_kept_than_said(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tiny_texts()
    everything = sum(text.stop - text.start for text in texts)
    assert BasePredictions(tiny, texts, "response").tokens == everything
    assert BasePredictions(tiny, texts, "response", most_tokens=10).tokens == 10
    assert BasePredictions(tiny, texts, "decision").tokens == len(texts)
    assert BasePredictions(tiny, texts, "decision", most_tokens=3).tokens == 3
    monkeypatch.setattr(base_predictions, "_KEPT_BYTES", 4 * 97 * 8)  # room for eight rows of the vocabulary
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


def test_a_token_that_the_model_excludes_is_infinitely_far(tiny: Any) -> None:
    base = BasePredictions(tiny, tiny_texts(), "all")
    head = tiny.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, output: output.index_fill(-1, torch.tensor([5]), -math.inf))
    try:
        drift = base.drift(tiny, [])
    finally:
        hook.remove()
    assert bool(drift.kl.isinf().all())


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
