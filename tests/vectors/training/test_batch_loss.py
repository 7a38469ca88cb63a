"""Sharing a batch between processes must change neither its loss, nor its gradient, nor its figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from personality.manifests.errors import UsageError
from personality.vectors.training.batch_loss import FIGURES, BatchLoss, References, batch_loss
from personality.vectors.training.batches import BatchItem, collate
from personality.vectors.training.examples import Example
from personality.vectors.training.objectives import sum_log_probs
from personality.vectors.training.presets import Objective
from personality.vectors.training.response import response_log_probs
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.tokens import encode_examples

Examples = Callable[[int], list[Example]]


@pytest.fixture
def whole(tokenizer: Any, pairs: Examples, generals: Examples) -> BatchItem:
    """Five pairs and two general examples of different lengths."""
    own = encode_examples(tokenizer, pairs(105)[99:104], 500, with_rejected=True)
    other = encode_examples(tokenizer, generals(12)[9:11], 500, with_rejected=False)
    return BatchItem(tuple(own), tuple(other))


def loss_of(
    model: Any, reference: Any, share: BatchItem, whole: BatchItem, objective: Objective, world: int
) -> BatchLoss:
    inputs = collate(share, 0)
    with torch.no_grad():
        before, mask, _ = response_log_probs(reference, inputs, keep_logits=True)
        sums = sum_log_probs(before, mask)
    references = References(sums[: len(share.behavior)], sums[len(sums) - share.pairs :])
    log_probs, mask, _ = response_log_probs(model, inputs, keep_logits=True)
    settings = TrainSettings(method=objective)
    return batch_loss(log_probs, mask, share, whole, objective, settings, references=references, world=world)


@pytest.mark.parametrize("objective", ["sft", "orpo", "dpo"])
@pytest.mark.parametrize("world", [2, 3, 6])
def test_shares_add_up_to_the_batch(
    objective: Objective, world: int, whole: BatchItem, llama: Callable[..., Any]
) -> None:
    model, reference = llama(seed=1), llama(seed=2)
    expected = loss_of(model, reference, whole, whole, objective, 1)
    torch.autograd.backward(expected.loss)
    gradient = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    shares = [whole.share(rank, world) for rank in range(world)]
    found = [loss_of(model, reference, share, whole, objective, world) for share in shares]
    # What data-parallel training does: the mean of the processes' gradients.
    torch.autograd.backward(torch.stack([item.loss for item in found]).sum() / world)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradient[name], rtol=1e-4, atol=1e-7), name
    total = torch.stack([item.figures for item in found]).sum(0)
    assert torch.allclose(total, expected.figures, rtol=1e-5, atol=1e-6, equal_nan=True)
    gains = dict(zip(FIGURES, total.tolist(), strict=True))
    assert abs(gains["chosen_gain"]) > 1e-3 and abs(gains["rejected_gain"]) > 1e-3
    assert math.isnan(total[FIGURES.index("reward_margin")]) == (objective == "sft")


def test_every_example_goes_to_one_process(whole: BatchItem) -> None:
    for world in (1, 2, 5, 7):
        shares = [whole.share(rank, world) for rank in range(world)]
        assert sorted(id(x) for share in shares for x in share.behavior) == sorted(id(x) for x in whole.behavior)
        assert sorted(id(x) for share in shares for x in share.general) == sorted(id(x) for x in whole.general)
        sizes = [len(share.behavior) + len(share.general) for share in shares]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    with pytest.raises(UsageError, match="a batch of 7 examples cannot be shared by 8 processes") as caught:
        whole.share(0, 8)
    assert "--batch-size" in caught.value.hint


def test_general_answers_count_in_dpo_as_much_as_chosen_ones_at_the_start(
    tokenizer: Any, pairs: Examples, generals: Examples, llama: Callable[..., Any]
) -> None:
    own = tuple(encode_examples(tokenizer, pairs(3), 500, with_rejected=True))
    alone = BatchItem(own, ())
    model, reference = llama(seed=1), llama(seed=1)
    without = loss_of(model, reference, alone, alone, "dpo", 1)
    general = tuple(encode_examples(tokenizer, generals(1), 500, with_rejected=False))
    mixed = BatchItem(own, general)
    found = loss_of(model, reference, mixed, mixed, "dpo", 1)
    inputs = collate(BatchItem((), general), 0)
    log_probs, mask, _ = response_log_probs(model, inputs, keep_logits=True)
    surprise = -float(sum_log_probs(log_probs, mask).detach())
    assert float(without.loss.detach()) == pytest.approx(math.log(2), abs=1e-6)
    assert float(found.loss.detach()) == pytest.approx(math.log(2) + 0.01 / 2 * surprise / 3, rel=1e-4)
