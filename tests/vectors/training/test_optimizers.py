from __future__ import annotations

import pytest
import torch

from personality.vectors.training.apollo import Apollo
from personality.vectors.training.optimizers import make_optimizer, rate_factor
from personality.vectors.training.settings import TrainSettings


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_no_step_is_spent_at_rate_zero(schedule: str, steps: int) -> None:
    rates = [rate_factor(i, steps=steps, warmup=0.1, schedule=schedule) for i in range(steps)]  # type: ignore[arg-type]
    assert min(rates) > 0
    assert max(rates) == 1.0
    assert rates[-1] <= rates[0] or schedule == "constant" or steps == 40


def test_the_cosine_by_hand() -> None:
    rates = [rate_factor(i, steps=40, warmup=0.1, schedule="cosine") for i in range(40)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[22] == pytest.approx(0.5)  # halfway from step 4 to the end
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert [rate_factor(i, steps=5, warmup=0.1, schedule="linear") for i in range(5)] == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2]
    )


def test_optimizers_are_what_the_settings_name() -> None:
    matrix, vector = torch.nn.Parameter(torch.zeros(6, 8)), torch.nn.Parameter(torch.zeros(8))
    params = [matrix, vector]
    apollo = make_optimizer(params, TrainSettings(rank=4, alpha=2.0, weight_decay=0.2, seed=3), 0.1)
    assert isinstance(apollo, Apollo)
    options = apollo.param_groups[0]
    assert (options["rank"], options["scale"], options["scale_type"]) == (4, 2.0, "channel")
    assert (options["lr"], options["weight_decay"], options["norm_growth"]) == (0.1, 0.2, 1.01)

    mini = make_optimizer(params, TrainSettings(optimizer="apollo-mini"), 0.1).param_groups[0]
    assert (mini["rank"], mini["scale"], mini["scale_type"]) == (1, None, "tensor")

    adamw = make_optimizer(params, TrainSettings(optimizer="adamw", weight_decay=0.2), 0.1)
    assert isinstance(adamw, torch.optim.AdamW)
    decays = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert decays == {id(matrix): 0.2, id(vector): 0.0}
