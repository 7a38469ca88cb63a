"""Frozen context against the full forward pass, on every architecture that keeps a state of its own kind."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from personality.manifests.errors import UsageError
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from personality.vectors.training.batches import BatchItem, collate
from personality.vectors.training.frozen_cache import FrozenCache
from personality.vectors.training.frozen_context import check_frozen_context, collate_frozen, frozen_response_log_probs
from personality.vectors.training.response import response_log_probs
from personality.vectors.training.tokens import Encoded, EncodedExample
from tests.conftest import tiny_config

VOCABULARY = 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MIXED = ["linear_attention", "linear_attention", "full_attention"]
LOCAL: dict[str, Callable[[], Any]] = {
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **COMMON,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=MIXED,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "olmo_hybrid": lambda: transformers.OlmoHybridConfig(
        **COMMON, linear_key_head_dim=8, linear_value_head_dim=16, layer_types=MIXED, pad_token_id=0, eos_token_id=1
    ),
    "jamba": lambda: transformers.JambaConfig(
        **COMMON, num_experts=2, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1
    ),
    "sliding": lambda: transformers.MistralConfig(**COMMON, sliding_window=4),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}
RECURRENT = ("qwen3_5", "qwen3_next", "olmo_hybrid")
KINDS = ("llama", "qwen3", "qwen3_moe", *RECURRENT, "sliding", "gpt2")


def make_model(kind: str, **changes: Any) -> Any:
    """A model whose state matters: with transformers' small initial weights a context hardly changes anything."""
    torch.manual_seed(0)
    config = LOCAL[kind]() if kind in LOCAL else tiny_config(kind)
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config).float().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def make_example(
    prompt: int, chosen: int, rejected: int | None = None, *, seed: int = 0, after: int = 1
) -> EncodedExample:
    """Random tokens: a prompt and answers of so many tokens, `after` more behind the answer."""
    draw = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(count))

    def answer(count: int) -> Encoded:
        return Encoded(ids=head + tokens(count + after), start=prompt, stop=prompt + count)

    head = tokens(prompt)
    return EncodedExample(answer(chosen), None if rejected is None else answer(rejected))


def mixed_batch() -> BatchItem:
    """Prompts from one token (an empty context) to twelve, answers of one to nine, pairs and a general example."""
    return BatchItem(
        (
            make_example(12, 5, 9, seed=1),
            make_example(1, 4, 2, seed=2),
            make_example(2, 1, 3, seed=3),
            make_example(7, 6, 1, seed=4, after=0),
        ),
        (make_example(5, 3, seed=5),),
    )


def rows_of(item: BatchItem) -> list[Encoded]:
    rejected = [example.rejected for example in item.behavior if example.rejected is not None]
    return [*(example.chosen for example in (*item.behavior, *item.general)), *rejected]


def full_log_probs(model: nn.Module, row: Encoded) -> Tensor:
    """The answer's log-probabilities in one pass over one unpadded row."""
    ids = torch.tensor([row.ids[: row.stop]])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    chosen: Tensor = logits.log_softmax(-1)[torch.arange(row.start - 1, row.stop - 1), ids[0, row.start :]]
    return chosen


def full_loss(model: nn.Module, item: BatchItem) -> Tensor:
    return -torch.cat([full_log_probs(model, row) for row in rows_of(item)]).mean()


def frozen_loss(model: nn.Module, item: BatchItem) -> Tensor:
    log_probs, mask, _ = frozen_response_log_probs(model, collate_frozen(item, 0), keep_logits=True)
    return -log_probs[mask].mean()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(trained, found, strict=True) if gradient is not None}


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_are_those_of_the_full_pass(kind: str) -> None:
    model, item = make_model(kind), mixed_batch()
    log_probs, mask, _ = frozen_response_log_probs(model, collate_frozen(item, 0), keep_logits=kind != "gpt2")
    for found, used, row in zip(log_probs, mask, rows_of(item), strict=True):
        assert torch.allclose(found[used], full_log_probs(model, row), atol=1e-4), row


@pytest.mark.parametrize("kind", ("llama", "qwen3_5", "olmo_hybrid", "sliding"))
def test_the_context_matters(kind: str) -> None:
    """Otherwise the test above would pass with a cache that is never read."""
    model, item = make_model(kind), mixed_batch()
    inputs = collate_frozen(item, 0)
    there, mask, _ = frozen_response_log_probs(model, inputs, keep_logits=True)
    inputs["context_ids"] = (inputs["context_ids"] + 1) % VOCABULARY
    other, _, _ = frozen_response_log_probs(model, inputs, keep_logits=True)
    assert float((there - other).abs()[0][mask[0]].max().detach()) > 0.01


@pytest.mark.parametrize("kind", ("llama", "qwen3_5", "qwen3_next", "olmo_hybrid"))
@pytest.mark.parametrize(("prompt", "chosen"), [(1, 1), (2, 1), (1, 3), (9, 1), (2, 2)])
def test_narrow_batches(kind: str, prompt: int, chosen: int) -> None:
    """An empty context, a context of one token and answers of one token, with nothing wider beside them."""
    model = make_model(kind)
    item = BatchItem((make_example(prompt, chosen, seed=7),), ())
    log_probs, mask, _ = frozen_response_log_probs(model, collate_frozen(item, 0), keep_logits=True)
    assert torch.allclose(log_probs[mask], full_log_probs(model, item.behavior[0].chosen), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_steps_follow_each_other(kind: str) -> None:
    model, item = make_model(kind), mixed_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        loss = frozen_loss(model, item)
        assert torch.allclose(loss, full_loss(model, item), atol=1e-4)  # also after the weights have moved
        found = gradients(model, loss)
        assert all(torch.isfinite(gradient).all() for gradient in found.values())
        assert found.keys() == gradients(model, full_loss(model, item)).keys()
        for name, parameter in model.named_parameters():
            parameter.grad = found.get(name)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]


@pytest.mark.parametrize("kind", ("llama", "qwen3"))
def test_gradient_is_the_full_one_without_the_contexts_share(kind: str) -> None:
    """Where all that a context hands on are keys and values, detaching those in a full pass gives the same."""
    model, item = make_model(kind), mixed_batch()
    frozen = gradients(model, frozen_loss(model, item))
    hooks = []
    start = 0

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, : start - 1].detach(), output[:, start - 1 :]], dim=1)

    for name, module in model.named_modules():
        if name.endswith(("k_proj", "v_proj", "k_norm")):
            hooks.append(module.register_forward_hook(cut))
    parts = []
    for row in rows_of(item):
        start = row.start
        parts.append(full_log_probs(model, row))
    detached = gradients(model, -torch.cat(parts).mean())
    for hook in hooks:
        hook.remove()
    full = gradients(model, full_loss(model, item))
    for name, gradient in frozen.items():
        assert torch.allclose(gradient, detached[name], atol=1e-5, rtol=1e-3), name
    queries = [name for name in frozen if ".q_proj." in name]
    values = [name for name in frozen if ".v_proj." in name]
    assert torch.allclose(frozen[queries[-1]], full[queries[-1]], atol=1e-6)  # the last layer's: nothing is missing
    assert min(cosine(frozen[name], full[name]) for name in queries) > 0.7
    assert not torch.allclose(frozen[values[-1]], full[values[-1]], atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("qwen3_5", "model.layers.0.linear_attn.in_proj_qkv.weight"),
        ("qwen3_5", "model.layers.1.linear_attn.A_log"),
        ("qwen3_next", "model.layers.0.linear_attn.conv1d.weight"),
        ("olmo_hybrid", "model.layers.1.linear_attn.v_proj.weight"),
        ("sliding", "model.layers.1.self_attn.k_proj.weight"),
        ("llama", "model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_gradient_by_finite_differences(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the context's states held fast, moving a weight changes the loss as the gradient says."""
    model, item = make_model(kind), mixed_batch()
    parameter = dict(model.named_parameters())[name]
    gradient = gradients(model, frozen_loss(model, item))[name]
    fixed = copy.deepcopy(model)  # goes on reading contexts with the weights as they were
    forward = type(model).forward

    def read_with_fixed(self: nn.Module, *args: Any, **inputs: Any) -> Any:
        reading = not isinstance(inputs["past_key_values"], FrozenCache)
        return forward(fixed if reading else self, *args, **inputs)

    monkeypatch.setattr(type(model), "forward", read_with_fixed)
    chance = torch.randn_like(parameter)
    direction = gradient / gradient.norm() + 0.5 * chance / chance.norm()
    expected = float((gradient * direction).sum())
    step = 1e-3 / abs(expected)  # moves the loss far above float32's rounding, yet along a straight line
    with torch.no_grad():
        parameter.add_(direction, alpha=step)
        above = frozen_loss(model, item)
        parameter.add_(direction, alpha=-2 * step)
        below = frozen_loss(model, item)
    measured = float((above - below) / (2 * step))
    assert measured == pytest.approx(expected, rel=1e-2)


def states_of(cache: Any) -> list[Tensor]:
    """Copies of all that a cache holds."""
    found = []
    for layer in cache.layers:
        for value in vars(layer).values():
            held = value.values() if isinstance(value, dict) else [value]
            found += [tensor.clone() for tensor in held if isinstance(tensor, Tensor)]
    return found


@pytest.mark.parametrize("kind", ("llama", *RECURRENT, "sliding"))
def test_reading_changes_nothing(kind: str) -> None:
    """A cache that was read once can be read again, with the same result."""
    model = make_model(kind)
    filled = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.arange(14).reshape(2, 7), past_key_values=filled, use_cache=True)
    before = states_of(filled)
    cache = FrozenCache(filled, torch.tensor([1, 0, 1]))
    block = {"input_ids": torch.arange(9).reshape(3, 3), "past_key_values": cache, "use_cache": True}
    first, second = model(**block).logits, model(**block).logits
    assert torch.equal(first, second)
    (first.sum() + second.sum()).backward()
    torch.testing.assert_close(states_of(filled), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ("llama", "qwen3_5", "olmo_hybrid"))
def test_autocast(kind: str) -> None:
    model, item = make_model(kind), mixed_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, wanted = frozen_loss(model, item), full_loss(model, item)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=0.02)
    assert {gradient.dtype for gradient in gradients(model, loss).values()} == {torch.float32}


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ("llama", "qwen3_5"))
@pytest.mark.usefixtures("one_process")
def test_inside_a_wrapper_for_several_processes(kind: str) -> None:
    model, item = make_model(kind), mixed_batch()
    alone = gradients(model, frozen_loss(model, item))
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        model.zero_grad()
        torch.autograd.backward(frozen_loss(wrapped, item))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, alone[name], atol=1e-5, rtol=1e-4), name


def test_stock_cache_fails_where_ours_does_not() -> None:
    """The reason for a cache of our own; should this ever pass, it is no longer needed."""
    model = make_model("qwen3_5")
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :6], use_cache=True).past_key_values
    loss = model(input_ids=ids[:, 6:], past_key_values=cache, use_cache=True).logits.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", ("llama", "qwen3_5"))
def test_below_peft(kind: str) -> None:
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "down_proj", *(["in_proj_qkv"] if kind == "qwen3_5" else [])]
    lora = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model, item = get_peft_model(make_model(kind), lora).train(), mixed_batch()
    loss = frozen_loss(model, item)
    assert torch.allclose(loss, full_loss(model, item), atol=1e-4)
    found = gradients(model, loss)
    assert found.keys() == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert all(float(gradient.abs().max()) > 0 for gradient in found.values())


@pytest.mark.parametrize("kind", ("llama", "qwen3_5"))
def test_bfloat16(kind: str) -> None:
    model, item = make_model(kind).bfloat16(), mixed_batch()
    loss = frozen_loss(model, item)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(full_loss(model, item).detach()), rel=0.02)
    assert {gradient.dtype for gradient in gradients(model, loss).values()} == {torch.bfloat16}


def test_gradient_checkpointing_is_refused() -> None:
    model = make_model("llama")
    model.gradient_checkpointing_enable()
    with pytest.raises(UsageError, match="did not read the frozen context"):
        frozen_loss(model, mixed_batch())


def test_a_state_of_unknown_kind_is_refused() -> None:
    filled = transformers.DynamicCache(config=tiny_config("llama"))
    filled.layers[1] = transformers.cache_utils.DummyLayer()
    with pytest.raises(UsageError, match="DummyLayer"):
        FrozenCache(filled, torch.tensor([0]))


@pytest.mark.parametrize("kind", KINDS)
def test_check_passes(kind: str) -> None:
    model = make_model(kind)
    check_frozen_context(model, 0)
    assert model.training


def test_check_finds_an_architecture_that_does_not_continue() -> None:
    config = transformers.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1
    )
    with pytest.raises(UsageError, match="did not read the frozen context"):
        check_frozen_context(AutoModelForCausalLM.from_config(config), 0)


def test_check_finds_a_state_that_is_lost() -> None:
    """Mamba layers of this kind begin anew with every block of more than one token."""
    with pytest.raises(UsageError, match="nats from those of a full pass"):
        check_frozen_context(make_model("jamba"), 0)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4),
    general=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=3),
    paired=st.booleans(),
)
def test_no_token_is_lost(lengths: list[tuple[int, int, int]], general: list[tuple[int, int]], paired: bool) -> None:
    item = BatchItem(
        tuple(make_example(p, c, r if paired else None, seed=i) for i, (p, c, r) in enumerate(lengths)),
        tuple(make_example(p, c, seed=100 + i) for i, (p, c) in enumerate(general)),
    )
    inputs = collate_frozen(item, 0)
    rows = rows_of(item)
    assert int(inputs["pairs"]) == (len(lengths) if paired else 0)
    assert len(inputs["input_ids"]) == len(rows)
    contexts = [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(inputs["context_ids"], inputs["context_mask"], strict=True)
    ]
    assert len(set(contexts)) == len(contexts)
    for index, row in enumerate(rows):
        block = inputs["input_ids"][index][inputs["attention_mask"][index].bool()].tolist()
        assert (*contexts[int(inputs["context_row"][index])], *block) == row.ids[: row.stop]
        answer = inputs["input_ids"][index][inputs["response_mask"][index]].tolist()
        assert tuple(answer) == row.ids[row.start : row.stop]
    context_mask, block_mask = inputs["context_mask"], inputs["attention_mask"]
    assert (context_mask.diff(dim=-1) >= 0).all()  # padding on the left
    assert (block_mask.diff(dim=-1) <= 0).all()  # and on the right
    assert context_mask.shape[1] >= 2
    assert block_mask.shape[1] >= 3


def test_pairs_share_one_reading() -> None:
    inputs = collate_frozen(mixed_batch(), 0)
    assert inputs["context_ids"].shape == (5, 11)
    assert inputs["context_row"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]


# On a steered model


@pytest.mark.parametrize("positions", ["all", "response", "decision"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_5", "sliding"])
def test_a_steered_model_is_steered_at_the_same_places(kind: str, positions: Any) -> None:
    model, item = make_model(kind).eval(), mixed_batch()
    inputs = collate_frozen(item, 0)
    plain, mask, _ = frozen_response_log_probs(model, inputs, keep_logits=True)
    with steered(model, [Injection(1, 3 * torch.randn(32, generator=torch.manual_seed(3)), positions, "add")]):
        found, _, _ = frozen_response_log_probs(model, inputs, keep_logits=True)
        full = collate(item, 0)
        wanted, wanted_mask, _ = response_log_probs(model, full, keep_logits=True)
        check_frozen_context(model, 0)
    for row in range(len(found)):
        torch.testing.assert_close(found[row][mask[row]], wanted[row][wanted_mask[row]], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[mask], plain[mask], atol=0.01)
