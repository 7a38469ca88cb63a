from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from personality.manifests.errors import PersonaError
from personality.preflight import likelihood
from personality.preflight.likelihood import answer_log_probs, own_replies
from personality.vectors.training.tokens import Encoded, encode
from tests.vectors.training.conftest import SIZES, make_llama, make_pair, make_tokenizer


def make_qwen3_5() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3_5TextConfig(
        **{**SIZES, "num_hidden_layers": 3},
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
    )
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


MODELS = {"llama": make_llama, "qwen3_5": make_qwen3_5}


def dialogues(tokenizer: Any, count: int = 5) -> list[Encoded]:
    return [encode(tokenizer, item.prompt, item.chosen, 999) for item in map(make_pair, (10**i for i in range(count)))]


@pytest.mark.parametrize("kind", MODELS)
def test_log_probs_are_those_of_one_text_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = MODELS[kind](), dialogues(make_tokenizer())
    for most in (4096, 1):  # all in one batch, and one by one
        monkeypatch.setattr(likelihood, "_BATCH_TOKENS", most)
        for text, scores in zip(texts, answer_log_probs(model, texts), strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([text.ids])).logits[0].double()
            expected = [
                float(logits[place - 1].log_softmax(-1)[text.ids[place]]) for place in range(text.start, text.stop)
            ]
            np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_own_replies_are_drawn_from_the_model(kind: str) -> None:
    tokenizer = make_tokenizer()
    model = MODELS[kind]()
    texts = dialogues(tokenizer)
    before = torch.random.get_rng_state()
    found = own_replies(model, tokenizer, texts, seed=1, new_tokens=12)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [(item.ids[: item.start], item.start) for item in found] == [(t.ids[: t.start], t.start) for t in texts]
    assert all(item.start < item.stop == len(item.ids) <= item.start + 12 for item in found)
    assert found == own_replies(model, tokenizer, texts, seed=1, new_tokens=12)
    assert found != own_replies(model, tokenizer, texts, seed=2, new_tokens=12)


def test_replies_are_sampled_at_temperature_1_from_all_tokens() -> None:
    """The mean log-probability of samples is the negative entropy, whatever the generation settings of the base say."""
    tokenizer, model = make_tokenizer(), make_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)  # far from uniform
    model.generation_config.top_k = 1
    model.generation_config.temperature = 0.1
    text = dialogues(tokenizer, 1)[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([text.ids[: text.start]])).logits[0, -1].double()
    expected = float((logits.softmax(-1) * logits.log_softmax(-1)).sum())
    first = own_replies(model, tokenizer, [text] * 2000, seed=0, new_tokens=1)
    assert np.mean([scores[0] for scores in answer_log_probs(model, first)]) == pytest.approx(expected, abs=0.15)
    assert len({item.ids[-1] for item in first}) > 20


def test_replies_end_where_those_of_the_data_end() -> None:
    tokenizer, model = make_tokenizer(), make_llama()
    end = tokenizer.eos_token_id
    model.generation_config.eos_token_id = 3  # a base whose own end of text is another token
    with torch.no_grad():
        model.lm_head.weight.zero_()  # uniform, so the end comes by chance
    found = own_replies(model, tokenizer, dialogues(tokenizer, 4) * 8, seed=0, new_tokens=64)
    ended = [item for item in found if item.stop - item.start < 64]
    assert ended
    assert all(item.ids[-1] == end and end not in item.ids[item.start : -1] for item in ended)


def test_a_base_that_predicts_nothing() -> None:
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(PersonaError, match="NaN or infinite"):
        answer_log_probs(model, dialogues(make_tokenizer(), 1))
