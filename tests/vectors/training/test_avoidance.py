from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from personality.manifests.errors import IncompatibleError, UsageError
from personality.model import load_model
from personality.playground.repository import base_folder
from personality.vectors.training.apollo import Apollo
from personality.vectors.training.avoidance import Avoidance, trained_weights

SHAPES = {"vector": (7,), "matrix": (5, 4), "experts": (3, 4, 2)}


class Weights(nn.Module):
    """Parameters of one, two and three dimensions."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in SHAPES.items():
            drawn = torch.randn(shape, generator=generator)
            self.register_parameter(name, nn.Parameter(drawn.to(dtype)))


def drawn_like(model: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(param.shape, generator=generator) for name, param in model.named_parameters()}


def flat(tensors: dict[str, Tensor], names: Any = None) -> Tensor:
    return torch.cat([tensors[name].detach().double().flatten() for name in (names or tensors)])


def step(model: nn.Module, gradients: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
    """Take one step; returns the flattened update."""
    before = flat(dict(model.named_parameters()))
    for name, param in model.named_parameters():
        param.grad = gradients[name].to(param.dtype)
    optimizer.step()
    return flat(dict(model.named_parameters())) - before


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


SEEDS = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, one_sided=st.booleans(), keep=st.booleans(), toward=st.floats(-3, 3))
def test_the_component_along_the_direction_is_removed_and_nothing_else(
    seed: int, one_sided: bool, keep: bool, toward: float
) -> None:
    free, held = Weights(seed), Weights(seed)
    directions = drawn_like(free, seed + 1)
    gradients = drawn_like(free, seed + 2)
    gradients = {name: gradients[name] - toward * directions[name] for name in gradients}
    u = step(free, gradients, torch.optim.SGD(free.parameters(), lr=0.1))
    avoidance = Avoidance(directions, held, one_sided=one_sided, keep_magnitude=keep)
    optimizer = torch.optim.SGD(held.parameters(), lr=0.1)
    avoidance.attach(optimizer)
    v = step(held, gradients, optimizer)
    d = flat(directions)

    assert avoidance.cos_in == pytest.approx(cosine(u, d), abs=1e-5)
    assert avoidance.cos_out == pytest.approx(cosine(v, d), abs=1e-5)
    if one_sided and float(u @ d) < 0:
        assert torch.equal(u, v)
        return
    assert abs(avoidance.cos_out) < 1e-5
    rest = u - (u @ d) / (d @ d) * d
    if keep:
        rest = rest * (u.norm() / rest.norm())
        assert float(v.norm()) == pytest.approx(float(u.norm()), rel=1e-5)
    torch.testing.assert_close(v, rest, atol=2e-6, rtol=1e-5)


def test_an_update_along_the_direction_is_not_stretched_from_rounding() -> None:
    model = Weights(0)
    directions = drawn_like(model, 1)
    avoidance = Avoidance(directions, model, keep_magnitude=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    avoidance.attach(optimizer)
    update = step(model, {name: -tensor for name, tensor in directions.items()}, optimizer)
    assert avoidance.cos_in == pytest.approx(1.0, abs=1e-6)
    assert float(update.norm()) < 1e-5


@pytest.mark.parametrize("make", [lambda p: Apollo(p, lr=0.01, rank=2), lambda p: torch.optim.AdamW(p, lr=0.01)])
def test_projecting_the_gradient_leaks_and_projecting_the_update_does_not(make: Callable[..., Any]) -> None:
    leaking, held = Weights(0), Weights(0)
    directions = drawn_like(leaking, 1)
    d = flat(directions)
    avoidance = Avoidance(directions, held, one_sided=False)
    first, second = make(leaking.parameters()), make(held.parameters())
    avoidance.attach(second)
    leaked = 0.0
    for seed in range(2, 12):
        gradients = drawn_like(leaking, seed)
        share = float(flat(gradients) @ d / (d @ d))
        gradients = {name: gradients[name] - share * directions[name] for name in gradients}
        leaked = max(leaked, abs(cosine(step(leaking, gradients, first), d)))
        step(held, gradients, second)
        assert abs(avoidance.cos_out) < 1e-5
    assert leaked > 0.01


def test_only_tensors_with_a_direction_count_and_move() -> None:
    free, held = Weights(0), Weights(0)
    gradients = drawn_like(free, 2)
    directions = {"matrix": -gradients["matrix"], "elsewhere": torch.ones(3)}
    step(free, gradients, torch.optim.SGD(free.parameters(), lr=0.1))
    avoidance = Avoidance(directions, held)
    optimizer = torch.optim.SGD(held.parameters(), lr=0.1)
    avoidance.attach(optimizer)
    step(held, gradients, optimizer)
    assert avoidance.names == ("matrix",)
    assert avoidance.cos_in == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(free.get_parameter("experts"), held.get_parameter("experts"))
    assert not torch.equal(free.get_parameter("matrix"), held.get_parameter("matrix"))


def test_bfloat16_shows_what_rounding_left() -> None:
    model = Weights(0, torch.bfloat16)
    directions = drawn_like(model, 1)
    gradients = {name: -directions[name] + torch.randn_like(directions[name]) for name in directions}
    avoidance = Avoidance(directions, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    avoidance.attach(optimizer)
    update = step(model, gradients, optimizer)
    assert avoidance.cos_out == pytest.approx(cosine(update, flat(directions)), abs=1e-5)
    assert avoidance.cos_out < avoidance.cos_in


def test_a_removed_handle_leaves_the_steps_alone() -> None:
    free, held = Weights(0), Weights(0)
    directions = drawn_like(free, 1)
    optimizer = torch.optim.SGD(held.parameters(), lr=0.1)
    handle = Avoidance(directions, held).attach(optimizer)
    handle.remove()
    handle.remove()
    gradients = {name: -tensor for name, tensor in directions.items()}
    u = step(free, gradients, torch.optim.SGD(free.parameters(), lr=0.1))
    assert torch.equal(u, step(held, gradients, optimizer))


def test_what_does_not_fit_is_refused() -> None:
    model = Weights(0)
    with pytest.raises(IncompatibleError, match="none of the 1 tensors"):
        Avoidance({"elsewhere": torch.ones(3)}, model)
    with pytest.raises(IncompatibleError, match=r"\[4, 5\] for `matrix`, which has \[5, 4\]"):
        Avoidance({"matrix": torch.ones(4, 5)}, model)
    avoidance = Avoidance({"matrix": torch.ones(5, 4)}, model)
    with pytest.raises(UsageError, match="1 of the parameters"):
        avoidance.attach(torch.optim.SGD([model.get_parameter("vector")], lr=0.1))
    model.get_parameter("matrix").requires_grad_(False)
    with pytest.raises(IncompatibleError):
        Avoidance({"matrix": torch.ones(5, 4)}, model)


def adapted(llama: Callable[..., Any], *, start: bool) -> Any:
    """A tiny Llama with LoRA factors, at their beginning (B = 0) or moved away from it."""
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=True)
    model = peft.get_peft_model(llama(), config)
    if not start:
        with torch.no_grad():
            for name, param in model.named_parameters():
                if "lora_" in name:
                    param.add_(torch.randn_like(param) * 0.1)
    return model


def merged(model: Any, names: Any) -> dict[str, Tensor]:
    """The changes of weights that the factors make now, by PEFT itself."""
    deltas = {}
    for path, module in model.named_modules():
        name = f"{path.removeprefix('base_model.model.')}.weight"
        if name in names:
            deltas[name] = module.get_delta_weight("default").detach().clone()
    return deltas


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_lora_factors_do_not_move_the_weights_along_the_direction(
    llama: Callable[..., Any], start: bool, keep: bool
) -> None:
    torch.manual_seed(0)
    model = adapted(llama, start=start)
    names = list(trained_weights(model))
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert len(names) == 4
    directions = {name: torch.randn(shape) for name, shape in trained_weights(model).items()}
    d = flat(directions, names)
    avoidance = Avoidance(directions, model, one_sided=False, keep_magnitude=keep)
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=0.01, weight_decay=0.0)
    avoidance.attach(optimizer)
    for _ in range(4):
        for param in params:
            param.grad = torch.randn_like(param)
        before = flat(merged(model, names), names)
        optimizer.step()
        change = flat(merged(model, names), names) - before
        assert avoidance.cos_out == pytest.approx(cosine(change, d), abs=1e-5)
        assert abs(avoidance.cos_out) < max(1e-5, 0.02 * abs(avoidance.cos_in))


def movement(optimizer_name: str, directions: dict[str, Tensor] | None) -> tuple[dict[str, Tensor], list[float]]:
    """Ten steps of the playground's model on one sentence; its movement, and cos_out of each step."""
    model = load_model(base_folder())
    torch.manual_seed(0)
    ids = torch.randint(10, 900, (4, 24))
    params = list(model.parameters())
    adamw = optimizer_name == "adamw"
    optimizer = torch.optim.AdamW(params, lr=1e-3) if adamw else Apollo(params, lr=1e-3, rank=8)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    avoidance = Avoidance(directions, model) if directions is not None else None
    if avoidance is not None:
        avoidance.attach(optimizer)
    cosines = []
    for _ in range(10):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        if avoidance is not None:
            cosines.append(avoidance.cos_out)
    return {name: param.detach() - before[name] for name, param in model.named_parameters()}, cosines


@pytest.mark.parametrize("optimizer", ["apollo", "adamw"])
def test_a_whole_run_does_not_end_along_the_direction(optimizer: str) -> None:
    free, _ = movement(optimizer, None)
    noise = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for name, t in free.items()}
    size = float(flat(free).norm() / flat(noise).norm())
    directions = {name: free[name] + size * noise[name] for name in free}
    d = flat(directions)
    held, cosines = movement(optimizer, directions)
    assert cosine(flat(free), d) > 0.5
    assert max(cosines) < 1e-5
    assert cosine(flat(held), d) < 1e-4
    assert float(flat(held).norm()) > 0.1 * float(flat(free).norm())
