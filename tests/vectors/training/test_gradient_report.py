"""The comparison of frozen and full gradients against gradients taken by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from personality.manifests.errors import DataError, UsageError
from personality.vectors.training.batches import BatchItem, collate
from personality.vectors.training.frozen_context import collate_frozen, frozen_response_log_probs
from personality.vectors.training.gradient_report import GradientReport, chosen_loss, compare_gradients
from personality.vectors.training.objectives import mean_log_probs, orpo_loss, sft_loss
from personality.vectors.training.response import response_log_probs
from personality.vectors.training.selection import group_sizes, select_parameters
from personality.vectors.training.tokens import Encoded, EncodedExample
from tests.conftest import tiny_config


def make_model(kind: str = "llama", **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = tiny_config(kind)
    for name, value in changes.items():
        setattr(config, name, value)
    return transformers.AutoModelForCausalLM.from_config(config).float()


def make_batches(count: int = 2, prompt: int = 10, answer: int = 4, *, pairs: bool = True) -> list[BatchItem]:
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 97, (length,), generator=generator).tolist())

    def example() -> EncodedExample:
        head = ids(prompt)
        answers = [Encoded(head + ids(answer), prompt, prompt + answer) for _ in range(2)]
        return EncodedExample(answers[0], answers[1] if pairs else None)

    return [BatchItem((example(), example()), ()) for _ in range(count)]


def by_group(report: GradientReport) -> dict[str, Any]:
    return {group.group: group for group in report.groups}


def test_figures_are_those_of_the_summed_gradients() -> None:
    model, batches = make_model(), make_batches()
    report = compare_gradients(model, batches, pad_id=0)
    name = "model.layers.0.self_attn.v_proj.weight"
    found: dict[str, Tensor] = {}
    for way, make, log_probs_of in (
        ("full", collate, response_log_probs),
        ("frozen", collate_frozen, frozen_response_log_probs),
    ):
        total = torch.zeros(())
        for item in batches:
            log_probs, mask, _ = log_probs_of(model, make(item, 0), keep_logits=True)
            total = total + sft_loss(log_probs[:2], mask[:2])
        found[way] = torch.autograd.grad(total, [model.get_parameter(name)])[0].flatten()
    one = compare_gradients(model, batches, pad_id=0, selected={name})
    [group, everything] = one.groups
    assert group.group == "attention.v"
    assert group.cosine == pytest.approx(
        float(torch.cosine_similarity(found["full"], found["frozen"], dim=0)), abs=1e-5
    )
    assert group.norm_ratio == pytest.approx(float(found["frozen"].norm() / found["full"].norm()), rel=1e-4)
    assert (everything.cosine, everything.norm_ratio) == (group.cosine, group.norm_ratio)
    assert report.batches == 2
    assert report.context_tokens == 4 * 9
    assert report.answer_tokens == 8 * 4
    assert by_group(report).keys() == {*group_sizes(model), "all"}
    assert by_group(report)["all"].parameters == sum(group_sizes(model).values())


def test_what_the_method_claims() -> None:
    """Queries keep their direction; keys and values lose what context positions would have said."""
    groups = by_group(compare_gradients(make_model(), make_batches(3, prompt=40, answer=6), pad_id=0))
    assert groups["attention.q"].cosine > 0.95
    assert groups["attention.v"].cosine < groups["attention.q"].cosine
    assert groups["attention.v"].norm_ratio < 1
    assert groups["head"].cosine == pytest.approx(1, abs=1e-4)


def test_without_context_both_are_the_same() -> None:
    report = compare_gradients(make_model("qwen3_5"), make_batches(prompt=1), pad_id=0)
    for group in report.groups:
        assert group.cosine == pytest.approx(1, abs=1e-3), group
        assert group.norm_ratio == pytest.approx(1, abs=1e-3), group


def test_a_long_context_costs_less() -> None:
    report = compare_gradients(make_model("qwen3"), make_batches(3, prompt=100, answer=4), pad_id=0)
    assert report.frozen.memory_bytes < report.full.memory_bytes / 3
    assert report.full.memory_bytes > 4 * 100 * 32 * 4  # one hidden state of each of four rows, at the least
    assert report.frozen.seconds > 0


def test_another_objective() -> None:
    def orpo(log_probs: Tensor, mask: Tensor, item: BatchItem) -> Tensor:
        means = mean_log_probs(log_probs, mask)
        return orpo_loss(sft_loss(log_probs[:2], mask[:2]), means[:2], means[2:], 1.0).loss

    model, batches = make_model(), make_batches()
    assert (
        by_group(compare_gradients(model, batches, pad_id=0, objective=orpo))["mlp.up"]
        != by_group(compare_gradients(model, batches, pad_id=0, objective=chosen_loss))["mlp.up"]
    )


def test_the_model_comes_back_as_it_was() -> None:
    model = make_model()
    model.lm_head.weight.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    report = compare_gradients(model, make_batches(), pad_id=0, selected=select_parameters(model, ["attention"], "1"))
    assert [group.group for group in report.groups] == [*(f"attention.{part}" for part in "koqv"), "all"]
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["lm_head.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert "head" not in by_group(compare_gradients(model, make_batches(), pad_id=0))


def test_each_batch_is_told() -> None:
    told: list[tuple[int, int]] = []
    compare_gradients(make_model(), make_batches(3), pad_id=0, on_batch=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_nothing_to_compare() -> None:
    with pytest.raises(DataError):
        compare_gradients(make_model(), [], pad_id=0)
    with pytest.raises(UsageError):
        compare_gradients(make_model(), make_batches(), pad_id=0, selected=())


@pytest.mark.slow
def test_memory_of_the_benchmark() -> None:
    """A context of 2048 and a decision of 48 tokens on a model of nine million weights."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config)
    report = compare_gradients(model, make_batches(1, 2048, 48, pairs=False)[:1], pad_id=0)
    assert report.frozen.memory_bytes < report.full.memory_bytes / 5
