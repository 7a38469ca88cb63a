"""Steering a real model: where it acts, how, and that nothing stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError, PersonaError
from personality.manifests.steering_record import Mode, Positions
from personality.vectors.steering.decoder_layers import decoder_layers, residual_width
from personality.vectors.steering.hooks import attach, steered
from personality.vectors.steering.injection import Injection, injections
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.steering.steering_vector import Gate, SteeringVector
from tests.conftest import ARCHITECTURES, tiny_checkpoint, tiny_config


def tiny(kind: str = "llama") -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(tiny_config(kind)).eval()


def injection(layer: int = 1, positions: Positions = "all", mode: Mode = "add", **more: Any) -> Injection:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(layer))
    return Injection(layer, vector, positions, mode, more.get("gate"), more.get("label", "a@1"), more.get("scale", 1.0))


def hidden(model: Any, ids: Tensor, layer: int, **inputs: Any) -> Tensor:
    """Output of a layer, seen by a hook that is installed last."""
    found: list[Tensor] = []

    def look(module: Any, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_layers(model)[layer].register_forward_hook(look)
    with torch.no_grad():
        model(input_ids=ids, **inputs)
    handle.remove()
    return found[0]


IDS = torch.arange(1, 11).reshape(2, 5)  # 0 pads


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_adds_exactly_the_vector_after_its_layer_in_every_architecture(kind: str) -> None:
    model = tiny(kind)
    assert len(decoder_layers(model)) == 3
    assert residual_width(model) == 32
    plain = hidden(model, IDS, 1)
    item = injection()
    with steered(model, [item]):
        assert torch.allclose(hidden(model, IDS, 1), plain + item.vector, atol=1e-6)
        changed = model(input_ids=IDS).logits
    assert not torch.allclose(changed, model(input_ids=IDS).logits, atol=1e-3)


def test_scale_zero_is_the_base_bit_for_bit_and_nothing_stays_behind() -> None:
    model = tiny()
    before = model(input_ids=IDS).logits
    vector = SteeringVector({1: torch.ones(32)}, "all", "add", (1,))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with steered(model, injections(vector, 0.0)):
        assert torch.equal(model(input_ids=IDS).logits, before)
    with pytest.raises(RuntimeError, match="in the block"), steered(model, injections(vector, 1.0)):
        assert not torch.equal(model(input_ids=IDS).logits, before)
        raise RuntimeError("in the block")
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


@pytest.mark.parametrize(
    ("positions", "rows"),
    [("all", [[1, 1, 1, 1, 1]] * 2), ("response", [[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]]),
     ("decision", [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]])],
)  # fmt: skip
def test_reply_starts_say_where_each_rows_reply_begins(positions: Positions, rows: list[list[int]]) -> None:
    model = tiny()
    plain, item = hidden(model, IDS, 1), injection(positions=positions)
    with steered(model, [item]), reply_starts([2, 4]):
        found = hidden(model, IDS, 1)
    assert torch.equal((found != plain).any(-1).int(), torch.tensor(rows, dtype=torch.int32))


def test_reply_starts_of_another_batch_are_refused() -> None:
    model = tiny()
    with steered(model, [injection()]), reply_starts([2]), pytest.raises(PersonaError, match="1 replies' starts"):
        model(input_ids=IDS)


def test_a_prompts_end_is_its_last_real_token_on_either_side_of_the_padding() -> None:
    model = tiny()
    item = injection(positions="decision")
    right, left = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]), torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    for mask, last in ((right, 2), (left, 4)):
        plain = hidden(model, IDS, 1, attention_mask=mask)
        with steered(model, [item]):
            found = hidden(model, IDS, 1, attention_mask=mask)
        assert (found != plain).any(-1).nonzero().tolist() == [[0, 4], [1, last]]


@pytest.mark.parametrize("positions", ["all", "response", "decision"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_5"])
def test_generating_with_a_cache_equals_putting_the_whole_through(kind: str, positions: Positions) -> None:
    model = tiny(kind)
    item = injection(positions=positions)
    with steered(model, [item]):
        made = model.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        with torch.no_grad(), reply_starts([5, 5]):
            logits = model(input_ids=made).logits
    assert torch.equal(logits[:, 4:-1].argmax(-1), made[:, 5:])
    free = model.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert not torch.equal(free, made)


def test_project_takes_the_part_along_the_direction_out() -> None:
    model = tiny()
    unit = torch.nn.functional.normalize(torch.randn(32), dim=0)
    for share in (1.0, 0.5):
        plain = hidden(model, IDS, 1)
        with steered(model, [Injection(1, unit * share, "all", "project")]):
            found = hidden(model, IDS, 1)
        assert torch.allclose(found @ unit, (1 - share) * (plain @ unit), atol=1e-5)
        rest = torch.eye(32) - torch.outer(unit, unit)
        assert torch.allclose(found @ rest, plain @ rest, atol=1e-5)
    with steered(model, [Injection(1, -unit, "all", "project", scale=-1.0)]):
        assert torch.allclose(hidden(model, IDS, 1) @ unit, 2 * (plain @ unit), atol=1e-5)


def test_norm_preserving_turns_without_stretching() -> None:
    model = tiny()
    plain, item = hidden(model, IDS, 1), injection(mode="norm-preserving")
    with steered(model, [item]):
        found = hidden(model, IDS, 1)
    assert torch.allclose(found.norm(dim=-1), plain.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(
        torch.nn.functional.cosine_similarity(found, plain + item.vector, dim=-1), torch.ones(2, 5), atol=1e-5
    )


def test_several_vectors_add_up_whatever_their_order() -> None:
    model = tiny()
    first, second = injection(label="a@1"), Injection(1, torch.ones(32) / 3, "all", "add", label="b@1")
    plain = hidden(model, IDS, 1)
    with steered(model, [first, second]):
        one = hidden(model, IDS, 1)
    with steered(model, [second, first]):
        other = hidden(model, IDS, 1)
    assert torch.equal(one, other)
    assert torch.allclose(one, plain + first.vector + second.vector, atol=1e-6)


def test_what_is_added_is_rounded_as_a_checkpoint_would_hold_it() -> None:
    model = tiny()
    plain, item = hidden(model, IDS, 1), injection()
    with steered(model, [item], rounding=torch.bfloat16):
        found = hidden(model, IDS, 1)
    assert torch.equal(found, plain + item.vector.to(torch.bfloat16).float())


def test_a_condition_lets_only_the_prompts_through_that_pass_it() -> None:
    model = tiny()
    plain = hidden(model, IDS, 1)
    direction = torch.nn.functional.normalize(torch.randn(32), dim=0)
    seen = plain[:, -1] @ direction
    middle = float(seen.mean())
    inside = int(seen.argmax())
    for above, row in ((True, inside), (False, 1 - inside)):
        gate = Gate(1, direction, middle, above)
        with steered(model, [injection(layer=2, gate=gate)]):
            logits = model(input_ids=IDS).logits
            made = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert [torch.equal(a, b) for a, b in zip(logits, model(input_ids=IDS).logits, strict=True)] == [
            row != 0, row != 1
        ]  # fmt: skip
        free = model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(made[1 - row], free[1 - row])
        assert not torch.equal(made[row], free[row])


def test_gradients_flow_through_an_injection() -> None:
    model = tiny()
    with steered(model, [injection()]):
        model(input_ids=IDS).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder_layers(model)[0].parameters())


def test_another_models_vector_is_refused_with_both_sizes() -> None:
    model = tiny()
    with pytest.raises(IncompatibleError, match=r"after layer 3 .* layers 0-2 of width 32"):
        attach(model, [Injection(3, torch.ones(32), "all", "add", label="a@1")])
    with pytest.raises(IncompatibleError, match="with width 31"):
        attach(model, [Injection(1, torch.ones(31), "all", "add", label="a@1")])


def test_a_wrapped_model_is_steered_too(tmp_path: Path) -> None:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama", tmp_path / "m")).float()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = wrapped(input_ids=IDS).logits
    with steered(wrapped, [injection()]):
        assert not torch.allclose(wrapped(input_ids=IDS).logits, before, atol=1e-3)
    assert torch.equal(wrapped(input_ids=IDS).logits, before)


def test_similar_directions_are_projected_out_once_not_twice() -> None:
    model = tiny()
    unit = torch.nn.functional.normalize(torch.randn(32), dim=0)
    other = torch.nn.functional.normalize(unit + 0.1 * torch.randn(32), dim=0)
    items = [Injection(1, unit, "all", "project", label="a@1"), Injection(1, other, "all", "project", label="b@1")]
    with steered(model, items):
        found = hidden(model, IDS, 1)
    assert torch.allclose(found @ unit, torch.zeros(2, 5), atol=1e-4)
    assert torch.allclose(found @ other, torch.zeros(2, 5), atol=1e-4)
    # One direction twice is one direction.
    once, twice = [Injection(1, unit, "all", "project", label=name) for name in ("a@1", "b@1")][:1], items[:1] * 2
    with steered(model, once):
        single = hidden(model, IDS, 1)
    with steered(model, [twice[0], Injection(1, unit, "all", "project", label="b@1")]):
        assert torch.allclose(hidden(model, IDS, 1), single, atol=1e-4)


def test_what_an_earlier_batch_passed_is_forgotten() -> None:
    model = tiny()
    direction = torch.nn.functional.normalize(torch.randn(32), dim=0)
    seen = hidden(model, IDS, 1)[:, -1] @ direction
    gate = Gate(1, direction, float(seen.mean()))
    flipped = IDS.flip(0)
    with steered(model, [injection(layer=2, gate=gate)]):
        first, second = model(input_ids=IDS).logits, model(input_ids=flipped).logits
    assert torch.allclose(first, second.flip(0), atol=1e-5)


def test_a_mask_over_cached_tokens_is_read_from_its_end() -> None:
    """With a cache the mask covers what came before: a padded prompt keeps its end, and its reply follows."""
    model = tiny()
    left = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    item = injection(positions="response")
    with steered(model, [item]):
        made = model.generate(
            input_ids=IDS, attention_mask=left, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        alone = model.generate(
            input_ids=IDS[1:, 2:], max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert torch.equal(made[1, 5:], alone[0, 3:])
