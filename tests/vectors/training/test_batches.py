from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personality.manifests.errors import DataError, UsageError
from personality.vectors.training.batches import BatchItem, collate, general_needed, plan_batches
from personality.vectors.training.objectives import mean_log_probs
from personality.vectors.training.response import response_log_probs
from personality.vectors.training.settings import make_settings
from personality.vectors.training.tokens import Encoded, EncodedExample


def test_twenty_and_five_make_five_batches_of_four_and_one() -> None:
    plan = plan_batches(20, 5, batch_size=5, general_ratio=0.25, seed=0)
    assert [(len(batch.behavior), len(batch.general)) for batch in plan] == [(4, 1)] * 5


@given(
    n=st.integers(1, 200),
    ratio=st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0, 2.5]),
    batch_size=st.integers(1, 24),
    spare=st.integers(0, 9),
    seed=st.integers(0, 9),
)
def test_every_batch_has_its_share_and_nothing_comes_twice(
    n: int, ratio: float, batch_size: int, spare: int, seed: int
) -> None:
    try:
        make_settings(batch_size=batch_size, general_ratio=ratio)
    except UsageError:
        return  # the settings promise a place for both kinds, and refuse what has none
    needed = general_needed(n, ratio)
    plan = plan_batches(n, needed + spare, batch_size=batch_size, general_ratio=ratio, seed=seed)
    behavior = [index for batch in plan for index in batch.behavior]
    general = [index for batch in plan for index in batch.general]
    assert sorted(behavior) == list(range(n))
    assert len(general) == len(set(general)) == needed
    assert all(0 <= index < needed + spare for index in general)
    for batch in plan:
        assert 1 <= len(batch.behavior) + len(batch.general) <= batch_size
        assert batch.behavior
        assert bool(batch.general) == (ratio > 0)
        assert abs(len(batch.general) - needed / len(plan)) < 1
        assert abs(len(batch.behavior) + len(batch.general) - (n + needed) / len(plan)) < 1


def test_the_seed_decides_order_and_draw() -> None:
    def plan(seed: int) -> Any:
        return plan_batches(40, 100, batch_size=10, general_ratio=0.25, seed=seed)

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
    assert {i for batch in plan(1) for i in batch.general} != {i for batch in plan(2) for i in batch.general}


def test_too_few_general_examples_are_counted() -> None:
    with pytest.raises(
        DataError, match=r"20 examples of the behavior need 5 general ones at ratio 0\.25, there are 3"
    ) as caught:
        plan_batches(20, 3, batch_size=5, general_ratio=0.25, seed=0)
    assert "add 2 lines" in caught.value.hint
    with pytest.raises(DataError, match="no examples of the behavior"):
        plan_batches(0, 3, batch_size=5, general_ratio=0.25, seed=0)


def test_rounding_errors_ask_for_no_extra_example() -> None:
    assert general_needed(30, 0.1) == 3
    assert general_needed(21, 0.25) == 6


def dialogue(length: int, start: int, stop: int, offset: int = 0) -> Encoded:
    return Encoded(tuple(offset + i for i in range(1, length + 1)), start, stop)


def test_collate_lays_out_chosen_general_rejected() -> None:
    item = BatchItem(
        behavior=(EncodedExample(dialogue(4, 2, 4), dialogue(5, 2, 4, 50)),),
        general=(EncodedExample(dialogue(3, 1, 2, 100), None),),
    )
    batch = collate(item, pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 9], [101, 102, 103, 9, 9], [51, 52, 53, 54, 55]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["response_mask"].int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
    assert int(batch["pairs"]) == 1


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "moe"])
def test_a_padded_batch_gives_what_each_dialogue_gives_alone(architecture: str, request: pytest.FixtureRequest) -> None:
    make: Callable[..., Any] = request.getfixturevalue(architecture)
    model = make()
    rows = [dialogue(12, 3, 11), dialogue(30, 20, 30, 40), dialogue(5, 1, 3, 90)]
    together = BatchItem(tuple(EncodedExample(row, None) for row in rows), ())
    with torch.no_grad():
        log_probs, mask, _ = response_log_probs(model, collate(together, 0), keep_logits=True)
        means = mean_log_probs(log_probs, mask)
        for row, mean in zip(rows, means, strict=True):
            ids = torch.tensor([row.ids])
            every = torch.log_softmax(model(ids).logits.float(), dim=-1)[0]
            wanted = [float(every[t - 1, row.ids[t]]) for t in range(row.start, row.stop)]
            assert float(mean) == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)
        whole, whole_mask, _ = response_log_probs(model, collate(together, 0), keep_logits=False)
    assert torch.allclose(log_probs, whole, atol=1e-6)
    assert torch.equal(mask, whole_mask)
