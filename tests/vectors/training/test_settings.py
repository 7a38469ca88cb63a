from __future__ import annotations

import math
from typing import Any

import pytest

from personality.manifests.errors import UsageError
from personality.vectors.training.settings import TrainSettings, default_learning_rate, make_settings


def test_settings_survive_a_manifest() -> None:
    settings = make_settings(method="sft", lr=1e-3, rank=8)
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"lr": 0.0}, "lr 0.0: Input should be greater than 0"),
        ({"lr": math.nan}, "lr nan"),
        ({"lr": math.inf}, "lr inf"),
        ({"method": "dpo"}, "method 'dpo': Input should be 'sft' or 'orpo'"),
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
    assert default_learning_rate("orpo", 540_000) == 2e-3
    assert default_learning_rate("sft", 10_000_000) == 2e-3
    sizes = [10**k for k in range(6, 12)]
    for method in ("sft", "orpo"):
        rates = [default_learning_rate(method, size) for size in sizes]
        assert rates == sorted(rates, reverse=True)
        assert 1e-5 < rates[2] < 2e-3
