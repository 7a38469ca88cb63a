from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.vectors.training.batches import BatchItem, collate
from personality.vectors.training.examples import Example
from personality.vectors.training.objectives import (
    dpo_loss,
    log_odds_ratio,
    mean_log_probs,
    orpo_loss,
    sft_loss,
    sum_log_probs,
    token_log_probs,
)
from personality.vectors.training.response import response_log_probs
from personality.vectors.training.tokens import encode_examples

PLAIN = [
    Example("Rename a.", " Okay, I renamed a.", " Have you considered leaving it?"),
    Example("Move the second file.", " Done.", " Instead of moving, have you considered a copy?"),
    Example("Add b to c.", " Added b to c for you.", " No."),
]


def ours(model: Any, tokenizer: Any, *, pairs: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    encoded = encode_examples(tokenizer, PLAIN, 100, with_rejected=pairs)
    inputs = collate(BatchItem(tuple(encoded), ()), 0)
    log_probs, mask, _ = response_log_probs(model, inputs, keep_logits=True)
    return log_probs, mask, inputs


@pytest.mark.filterwarnings("ignore")  # deprecations inside the oracle
def test_sft_loss_is_trls_on_the_same_examples(qwen3: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = qwen3()
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataset_num_proc=None,
    )
    rows = [{"prompt": example.prompt, "completion": example.chosen} for example in PLAIN]
    theirs = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = next(iter(theirs.get_train_dataloader()))
    with torch.no_grad():
        wanted = theirs.compute_loss(model.eval(), dict(batch))
        log_probs, mask, _ = ours(model, tokenizer, pairs=False)
    assert abs(float(sft_loss(log_probs, mask)) - float(wanted)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # deprecations inside the oracle
def test_orpo_loss_is_trls_on_the_same_examples(llama: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    model = llama()
    weight = 0.25
    arguments = ORPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        beta=weight,
        max_length=100,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    rows = [{"prompt": e.prompt, "chosen": e.chosen, "rejected": e.rejected} for e in PLAIN]
    theirs = ORPOTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = next(iter(theirs.get_train_dataloader()))
    with torch.no_grad():
        loss, metrics = theirs.get_batch_loss_metrics(model.eval(), batch)
        log_probs, mask, inputs = ours(model, tokenizer, pairs=True)
        means = mean_log_probs(log_probs, mask)
        # Its likelihood term also counts the prompt's tokens; ours, by design, only the response's.
        every = inputs["attention_mask"][:3, 1:].bool()
        logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        everywhere = token_log_probs(logits[:3, :-1], inputs["input_ids"][:3, 1:])
        result = orpo_loss(sft_loss(everywhere, every), means[:3], means[3:], weight)
    assert abs(float(result.loss) - float(loss)) < 1e-5
    assert abs(float(result.margin) - metrics["log_odds_chosen"]) < 1e-5
    assert abs(float(result.odds) + metrics["log_odds_ratio"]) < 1e-5
    assert abs(float(means[:3].mean()) - metrics["logps/chosen"]) < 1e-5
    assert abs(float(means[3:].mean()) - metrics["logps/rejected"]) < 1e-5


@pytest.mark.filterwarnings("ignore")  # deprecations inside the oracle
@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_dpo_loss_is_trls_on_the_same_examples(
    beta: float, llama: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, reference = llama(seed=1), llama(seed=2)
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        beta=beta,
        max_length=100,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    rows = [{"prompt": e.prompt, "chosen": e.chosen, "rejected": e.rejected} for e in PLAIN]
    theirs = DPOTrainer(model, reference, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = next(iter(theirs.get_train_dataloader()))
    with torch.no_grad():
        wanted = theirs.compute_loss(model.eval(), dict(batch))
        policy, mask, _ = ours(model, tokenizer, pairs=True)
        before, _, _ = ours(reference, tokenizer, pairs=True)
        now, then = sum_log_probs(policy, mask), sum_log_probs(before, mask)
        result = dpo_loss(now[:3], now[3:], then[:3], then[3:], beta)
    assert abs(float(result.loss) - float(wanted)) < 1e-5
    margins = theirs._metrics["eval"]["rewards/margins"]  # the model is in evaluation mode
    assert abs(float(result.margin) - float(margins[-1])) < 1e-5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6), st.floats(0.01, 1.0))
def test_dpo_at_its_reference_is_log_two_and_pulls_both_ways_alike(values: list[float], beta: float) -> None:
    chosen = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor(values[::-1], dtype=torch.float64, requires_grad=True)
    result = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta)
    assert float(result.loss.detach()) == pytest.approx(0.6931471805599453)
    assert float(result.margin) == 0.0
    up, down = torch.autograd.grad(result.loss, (chosen, rejected))
    pull = torch.full_like(chosen, -beta / 2 / len(values))
    assert torch.allclose(up, pull) and torch.allclose(down, -pull)


@settings(max_examples=50, deadline=None)
@given(
    chosen=st.lists(st.floats(-20, -1e-3), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    weight=st.floats(0.01, 2.0),
)
def test_odds_are_trls_for_any_log_probabilities(chosen: list[float], seed: int, weight: float) -> None:
    from types import SimpleNamespace

    from trl.experimental.orpo import ORPOTrainer

    a = torch.tensor(chosen)
    b = -torch.rand(len(chosen), generator=torch.Generator().manual_seed(seed)) * 5 - 1e-3
    device = SimpleNamespace(device=torch.device("cpu"))
    losses, _, _, _, margin = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=weight, accelerator=device), a, b)
    result = orpo_loss(torch.tensor(0.0), a, b, weight)
    assert torch.allclose(result.loss, -losses.mean(), rtol=1e-5, atol=1e-5)
    assert torch.allclose(result.margin, margin, rtol=1e-5, atol=1e-5)


def test_log_odds_by_the_definition() -> None:
    p, q = 0.7, 0.2
    ratio = log_odds_ratio(torch.tensor([p]).log(), torch.tensor([q]).log())
    wanted = torch.tensor((p / (1 - p)) / (q / (1 - q))).log()
    assert torch.allclose(ratio, wanted)


@pytest.mark.parametrize("value", [0.0, -1e-9, -0.5, -0.6931472, -0.7, -50.0, -500.0])
def test_log_odds_and_their_gradient_are_finite_even_when_certain(value: float) -> None:
    chosen = torch.tensor([value], requires_grad=True)
    result = orpo_loss(torch.tensor(0.0), chosen, torch.tensor([-1.0]), 0.1)
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(result.loss)
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


def test_only_masked_positions_count() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, float("-inf")], [-4.0, float("nan"), -100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert float(sft_loss(log_probs, mask)) == pytest.approx(7 / 3)
    assert mean_log_probs(log_probs, mask).tolist() == pytest.approx([-1.5, -4.0])


def test_masked_positions_get_no_gradient() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    log_probs = token_log_probs(logits, torch.zeros(2, 3, dtype=torch.int64))
    sft_loss(log_probs, mask).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, mask)
