from __future__ import annotations

import math
from typing import Any

import pytest

from personality.manifests.errors import UsageError
from personality.vectors.training.presets import PRESETS, default_learning_rate
from personality.vectors.training.settings import TrainSettings, fitting, make_settings


def test_settings_survive_a_manifest() -> None:
    settings = make_settings(method="sft", lr=1e-3, rank=8)
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"lr": 0.0}, "lr 0.0: Input should be greater than 0"),
        ({"lr": math.nan}, "lr nan"),
        ({"lr": math.inf}, "lr inf"),
        ({"method": "ppo"}, "method 'ppo': Input should be 'sft', 'dpo', 'orpo' or 'sft-dpo'"),
        ({"method": "sft", "dpo_beta": 0.1}, "dpo_beta 0.1 belongs to dpo, the method is sft"),
        ({"method": "dpo", "orpo_lambda": 0.5}, "orpo_lambda 0.5 belongs to orpo, the method is dpo"),
        ({"method": "dpo", "dpo_lr": 1e-6}, "dpo_lr 1e-06 belongs to sft-dpo, the method is dpo"),
        ({"sft_share": 0.3}, "sft_share 0.3 belongs to sft-dpo, the method is orpo"),
        ({"context": "frozen", "gradient_checkpointing": True}, "gradient_checkpointing drops the cache"),
        ({"lora_alpha": 8.0}, "lora_alpha 8 without lora_rank"),
        ({"lora_rank": 4, "weights": "bf16-stochastic"}, "an adapter's factors are always float32"),
        ({"lora_rank": 4, "train_norms": True}, "factors of linear layers only"),
        ({"optimizer": "adamw", "weights": "bf16"}, "only apollo and apollo-mini keep count"),
        ({"optimiser": "adamw"}, "optimiser 'adamw': Extra inputs are not permitted"),
        ({"batch_size": 4}, "batch_size 4 has no room .* general_ratio 0.25: it takes at least 5"),
        ({"batch_size": 3, "general_ratio": 4.0}, "it takes at least 5"),
        ({"optimizer": "adamw", "alpha": 2.0}, "alpha 2 is Apollo's scale, the optimizer is adamw"),
        ({"optimizer": "apollo", "rank": 1}, "rank 1 is too coarse"),
        ({"warmup": 1.0}, "warmup 1.0"),
        ({"norm_growth": 0.9}, "norm_growth 0.9"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        make_settings(**values)
    assert "pydantic" not in caught.value.message
    assert caught.value.hint


def test_batches_without_general_data_may_be_of_any_size() -> None:
    assert make_settings(batch_size=1, general_ratio=0.0).batch_size == 1


def test_mini_is_rank_one() -> None:
    assert make_settings(optimizer="apollo-mini").effective_rank == 1
    assert make_settings(rank=8).effective_rank == 8


def test_default_rates() -> None:
    for size in (1e9, 8e9, 70e9):
        assert default_learning_rate("sft", int(size)) == 2e-5
        assert default_learning_rate("orpo", int(size)) == 1e-5
        assert default_learning_rate("dpo", int(size)) == 5e-7
        assert default_learning_rate("orpo", int(size), lora=True) == 1e-4
    assert default_learning_rate("orpo", 540_000) == 2e-3
    assert default_learning_rate("sft", 10_000_000) == 2e-3
    assert default_learning_rate("dpo", 540_000) == 7e-4
    assert default_learning_rate("orpo", 540_000, lora=True) == 1e-2
    sizes = [10**k for k in range(6, 12)]
    for objective, preset in PRESETS.items():
        rates = [default_learning_rate(objective, size) for size in sizes]
        assert rates == sorted(rates, reverse=True)
        assert preset.rate < rates[2] < preset.tiny_rate
        assert preset.usual[0] <= preset.rate <= preset.usual[1]


def test_each_phase_has_its_own_rate() -> None:
    both = make_settings(method="sft-dpo", lr=3e-5, dpo_lr=7e-7)
    assert (both.rate_of("sft", 10**9), both.rate_of("dpo", 10**9)) == (3e-5, 7e-7)
    preset = make_settings(method="sft-dpo")
    assert (preset.rate_of("sft", 10**9), preset.rate_of("dpo", 10**9)) == (2e-5, 5e-7)
    assert make_settings(method="dpo", lr=1e-6).rate_of("dpo", 10**9) == 1e-6


def test_a_repositorys_defaults_give_way_where_they_do_not_fit() -> None:
    defaults = {"lr": 1e-3, "orpo_lambda": 0.2, "rank": 8}
    assert fitting(defaults, {}) == defaults
    assert fitting(defaults, {"rank": 4}) == {**defaults, "rank": 4}
    # A rate for one objective, or for whole weights, says nothing about another, or about adapters.
    assert fitting(defaults, {"method": "dpo"}) == {"rank": 8, "method": "dpo"}
    assert fitting(defaults, {"lora_rank": 4}) == {"orpo_lambda": 0.2, "rank": 8, "lora_rank": 4}
    assert fitting(defaults, {"method": "dpo", "lr": 1e-6}) == {"rank": 8, "method": "dpo", "lr": 1e-6}
    assert fitting({"method": "dpo", "lr": 1e-6, "dpo_beta": 0.1}, {"method": "dpo"})["lr"] == 1e-6
