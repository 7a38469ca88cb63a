from __future__ import annotations

import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.errors import UsageError
from personality.vectors.training.apollo import Apollo, state_bytes
from personality.vectors.training.projections import mix_seed, projection


def paper_steps(
    W: Tensor, grads: list[Tensor], *, lr: float, rank: int, tensor: bool, gap: int, wd: float, seed: int
) -> Tensor:
    """Algorithm 1 of the paper, line by line and in float64, for m <= n."""
    m, n = W.shape
    W = W.double()
    r = min(rank, m)
    M, V = torch.zeros(r, n).double(), torch.zeros(r, n).double()
    previous = 0.0
    for t, grad in enumerate(grads, start=1):
        G = grad.double()
        P = projection(mix_seed(seed, 0), (t - 1) // gap, r, m, torch.device("cpu")).double()
        R = P @ G
        M = 0.9 * M + 0.1 * R
        V = 0.999 * V + 0.001 * R**2
        R_adapted = (M / (1 - 0.9**t)) / ((V / (1 - 0.999**t)).sqrt() + 1e-8)
        S = torch.diag(R_adapted.norm(dim=0) / R.norm(dim=0))
        if tensor:
            S = torch.eye(n).double() * R_adapted.norm() / R.norm()
        scaled = math.sqrt(m / r) * G @ S
        if previous and scaled.norm() / previous > 1.01:
            scaled = scaled / scaled.norm() * 1.01 * previous
        previous = float(scaled.norm())
        W = W - lr * scaled - lr * wd * W
    return W


def apply(param: Tensor, grads: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()


def random_grads(shape: tuple[int, ...], count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Growing gradients, so that the limiter has something to limit.
    return [torch.randn(shape, generator=generator) * (1.0 + 0.2 * i) for i in range(count)]


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(2, 12),
    extra=st.integers(0, 9),
    rank=st.integers(1, 16),
    tensor=st.booleans(),
    wd=st.sampled_from([0.0, 0.1]),
)
def test_steps_are_the_papers(m: int, extra: int, rank: int, tensor: bool, wd: float) -> None:
    shape = (m, m + extra)
    grads = random_grads(shape, 7)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    param = torch.nn.Parameter(start.clone())
    kind: Any = "tensor" if tensor else "channel"
    optimizer = Apollo([param], lr=0.01, rank=rank, scale_type=kind, update_proj_gap=3, weight_decay=wd, seed=11)
    apply(param, grads, optimizer)
    wanted = paper_steps(start, grads, lr=0.01, rank=rank, tensor=tensor, gap=3, wd=wd, seed=11)
    assert torch.allclose(param.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["channel", "tensor"])
def test_a_tall_matrix_steps_like_its_transpose(kind: Any) -> None:
    grads = random_grads((5, 9), 4)
    wide, tall = torch.nn.Parameter(torch.zeros(5, 9)), torch.nn.Parameter(torch.zeros(9, 5))
    apply(wide, grads, Apollo([wide], lr=0.1, rank=2, scale_type=kind))
    apply(tall, [grad.T.contiguous() for grad in grads], Apollo([tall], lr=0.1, rank=2, scale_type=kind))
    assert float(wide.detach().abs().max()) > 0.01
    assert torch.allclose(wide, tall.T, atol=1e-6)


def step_norm(optimizer: torch.optim.Optimizer, param: Tensor, grads: list[Tensor]) -> float:
    """Mean norm of a step, over the last half."""
    norms = []
    for grad in grads:
        before = param.detach().clone()
        param.grad = grad.clone()
        optimizer.step()
        norms.append(float((param.detach() - before).norm()))
    return sum(norms[len(norms) // 2 :]) / (len(norms) - len(norms) // 2)


def test_a_learning_rate_means_the_same_at_every_rank() -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (512, 768)
    # A steady direction in noise, with channels of very different size, as in a network.
    size = torch.logspace(-3, 0, shape[1])
    signal = torch.randn(shape, generator=generator) * 0.5
    grads = [(signal + torch.randn(shape, generator=generator)) * size for _ in range(24)]
    reference = torch.nn.Parameter(torch.zeros(shape))
    adamw = step_norm(torch.optim.AdamW([reference], lr=1e-3, weight_decay=0.0), reference, grads)
    ratios = {}
    unscaled = {}
    for rank in (8, 64, 256):
        param = torch.nn.Parameter(torch.zeros(shape))
        ratios[rank] = step_norm(Apollo([param], lr=1e-3, rank=rank), param, grads) / adamw
        param = torch.nn.Parameter(torch.zeros(shape))
        unscaled[rank] = step_norm(Apollo([param], lr=1e-3, rank=rank, scale=1.0), param, grads) / adamw
    assert max(ratios.values()) / min(ratios.values()) < 1.25, ratios
    assert all(0.7 < ratio < 1.4 for ratio in ratios.values()), ratios
    assert unscaled[256] / unscaled[8] > 4, unscaled


def test_the_limiter_holds_the_growth_of_the_scaled_gradient() -> None:
    # The second gradient cancels the momentum, so the third step is many times the second.
    grads = [torch.ones(4, 6), -torch.ones(4, 6), -10 * torch.ones(4, 6)]
    for growth, bound in ((1.01, 1.0101), (None, math.inf)):
        param = torch.nn.Parameter(torch.zeros(4, 6))
        optimizer = Apollo([param], lr=1.0, rank=4, norm_growth=growth)
        lengths = []
        for grad in grads:
            before = param.detach().clone()
            apply(param, [grad], optimizer)
            lengths.append(float((param.detach() - before).norm()))
        growths = [b / a for a, b in pairwise(lengths)]
        assert max(growths) <= bound
        if growth is None:
            assert max(growths) > 1.5


def test_a_zero_gradient_neither_moves_nor_freezes() -> None:
    param = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = Apollo([param], lr=0.1, rank=2)
    apply(param, [torch.zeros(4, 6)], optimizer)
    assert torch.equal(param, torch.ones(4, 6))
    apply(param, [torch.ones(4, 6)], optimizer)
    assert torch.isfinite(param).all()
    assert float((param.detach() - 1).abs().max()) > 0.01


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-22, 1e15])
def test_extreme_gradients_give_bounded_steps(size: float) -> None:
    param = torch.nn.Parameter(torch.zeros(4, 6))
    apply(param, random_grads((4, 6), 1), Apollo([param], lr=0.1, rank=2))
    optimizer = Apollo([param], lr=0.1, rank=2)
    before = param.detach().clone()
    apply(param, [torch.full((4, 6), size)], optimizer)
    assert torch.isfinite(param).all()
    assert float((param.detach() - before).abs().max()) <= 0.1 * 2 * 4


def test_vectors_and_scalars_step_like_adam() -> None:
    shapes = [(7,), (), (5, 1), (3, 1, 4)]
    ours = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = Apollo(ours, lr=0.05, rank=2, weight_decay=0.3)
    adam = torch.optim.Adam(theirs, lr=0.05)
    for i in range(5):
        for a, b, shape in zip(ours, theirs, shapes, strict=True):
            grad = torch.randn(shape, generator=torch.Generator().manual_seed(i))
            a.grad, b.grad = grad.clone(), grad.clone()
        optimizer.step()
        adam.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 6, 4)])
def test_packed_experts_step_each_like_a_matrix_of_its_own(kind: Any, shape: tuple[int, int, int]) -> None:
    grads = random_grads(shape, 5)
    for i, grad in enumerate(grads):
        grad[1] *= 100.0  # one expert's size must not reach the others
        if i == 0:
            grad[2] = 0.0  # no token went to this expert
    packed = torch.nn.Parameter(torch.zeros(shape))
    apply(packed, grads, Apollo([packed], lr=0.1, rank=2, scale_type=kind, update_proj_gap=2))
    for expert in range(3):
        alone = torch.nn.Parameter(torch.zeros(shape[1:]))
        optimizer = Apollo([alone], lr=0.1, rank=2, scale_type=kind, update_proj_gap=2)
        apply(alone, [grad[expert] for grad in grads], optimizer)
        assert torch.allclose(packed[expert], alone, atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
@pytest.mark.parametrize(("kind", "rank"), [("channel", 3), ("tensor", 1)])
def test_the_state_is_the_papers(shape: tuple[int, int], kind: Any, rank: int) -> None:
    param = torch.nn.Parameter(torch.zeros(shape))
    optimizer = Apollo([param], rank=rank, scale_type=kind)
    apply(param, random_grads(shape, 2), optimizer)
    state = optimizer.state[param]
    numbers = sum(value.numel() if torch.is_tensor(value) else 1 for value in state.values())
    assert numbers == 2 * 30 * rank + 2
    assert state_bytes(optimizer) == 4 * 2 * 30 * rank + 4 + 8
    # Projections are kept in memory beside it, and are not part of what is saved.
    assert optimizer.projection_bytes == 4 * 20 * rank
    assert sorted(optimizer.state_dict()["state"][0]) == ["exp_avg", "exp_avg_sq", "norm", "step"]


def test_rank_is_clamped() -> None:
    param = torch.nn.Parameter(torch.zeros(4, 10))
    optimizer = Apollo([param], rank=256)
    apply(param, random_grads((4, 10), 1), optimizer)
    assert optimizer.state[param]["exp_avg"].shape == (10, 4)


@pytest.mark.parametrize("shape", [(384, 800), (800, 384)])
def test_large_gradients_step_as_the_paper_says(shape: tuple[int, int]) -> None:
    # Above the size from which products may be done in bfloat16.
    grads = random_grads(shape, 3)
    param = torch.nn.Parameter(torch.zeros(shape))
    apply(param, grads, Apollo([param], lr=0.1, rank=64))
    tall = shape[0] > shape[1]
    sides = [grad.T if tall else grad for grad in grads]
    wanted = paper_steps(torch.zeros(384, 800), sides, lr=0.1, rank=64, tensor=False, gap=200, wd=0.0, seed=0)
    found = param.detach().double()
    assert float(((found.T if tall else found) - wanted).norm() / wanted.norm()) < 3e-3


def test_double_precision_is_kept() -> None:
    single, double = torch.nn.Parameter(torch.ones(6, 9)), torch.nn.Parameter(torch.ones(6, 9).double())
    grads = random_grads((6, 9), 3)
    apply(single, grads, Apollo([single], lr=1e-9, rank=2))
    apply(double, [grad.double() for grad in grads], Apollo([double], lr=1e-9, rank=2))
    assert torch.equal(single, torch.ones(6, 9))
    assert 0 < float((double.detach() - 1).abs().max()) < 1e-8


def test_many_parameters_step_as_each_would_alone() -> None:
    shapes = [(6, 9), (9, 6), (3, 4, 5), (7,), (6, 9), (2, 40)]
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    grads = {shape: random_grads(shape, 4, seed=len(shape)) for shape in shapes}
    optimizer = Apollo(params, lr=0.1, rank=2)
    for step in range(4):
        for number, (param, shape) in enumerate(zip(params, shapes, strict=True)):
            # The second comes a step later, so that it is at another step than its neighbors.
            param.grad = None if number == 1 and step == 0 else grads[shape][step].clone()
        optimizer.step()
    late = torch.nn.Parameter(torch.zeros(9, 6))
    unused = torch.nn.Parameter(torch.zeros(6, 9))
    alone = Apollo([unused, late], lr=0.1, rank=2)
    for grad in grads[(9, 6)][1:]:
        late.grad = grad.clone()
        alone.step()
    assert torch.equal(params[1], late)
    assert not torch.equal(params[0], params[4])  # same gradients, projections of their own


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))
    return layers.to(dtype)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    dtype = next(model.parameters()).dtype
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        inputs = torch.randn(8, 6, generator=generator).to(dtype)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [
        (torch.float32, "nearest"),
        (torch.bfloat16, "nearest"),
        (torch.bfloat16, "compensated"),
        (torch.bfloat16, "stochastic"),
    ],
)
@pytest.mark.parametrize("stop", [2, 4, 5, 8])  # inside a period, at its end, just behind it, at the next end
@pytest.mark.parametrize("kind", ["channel", "tensor"])
def test_a_resumed_run_is_bit_identical(stop: int, dtype: torch.dtype, weights: Any, kind: Any) -> None:
    def make(model: torch.nn.Module, seed: int) -> Apollo:
        return Apollo(
            model.parameters(), lr=0.01, rank=2, scale_type=kind, update_proj_gap=4, seed=seed, weights=weights
        )

    whole = network(dtype=dtype)
    train(whole, make(whole, 7), range(11))

    first = network(dtype=dtype)
    optimizer = make(first, 7)
    train(first, optimizer, range(stop))
    model_state, state = saved_and_loaded(first.state_dict()), saved_and_loaded(optimizer.state_dict())
    second = network(seed=99, dtype=dtype)
    second.load_state_dict(model_state)
    # The seed is part of the state, so even another base seed goes on with the old projections.
    resumed = make(second, 12345)
    resumed.load_state_dict(state)
    train(second, resumed, range(stop, 11))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_stay_float32_under_bfloat16_weights() -> None:
    model = network(dtype=torch.bfloat16)
    optimizer = Apollo(model.parameters(), lr=0.01, rank=2)
    train(model, optimizer, range(2))
    fresh = Apollo(model.parameters(), lr=0.01, rank=2)
    fresh.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for param, state in fresh.state.items():
        assert state["exp_avg"].dtype == torch.float32
        assert torch.equal(state["exp_avg"], optimizer.state[param]["exp_avg"])
        # A copy: training on must not change what was saved.
        assert state["exp_avg"].data_ptr() != optimizer.state[param]["exp_avg"].data_ptr()


def test_groups_keep_their_own_options_and_closures_work() -> None:
    a, b = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3, 4))
    groups: list[dict[str, Any]] = [{"params": [a]}, {"params": [b], "lr": 0.0}]
    optimizer = Apollo(groups, lr=0.1, rank=2)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (a.square() + b.square()).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    assert optimizer.step(closure) == 24.0
    assert float((a.detach() - 1).abs().min()) > 0.01
    assert torch.equal(b, torch.ones(3, 4))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"rank": 0}, "rank is 0"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale_type": "row"}, "scale_type is 'row'"),
        ({"update_proj_gap": 0}, "update_proj_gap is 0"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"norm_growth": 0.5}, "norm_growth is 0.5"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        Apollo([torch.nn.Parameter(torch.zeros(2, 2))], **options)
    assert caught.value.hint


def test_a_real_model_learns_as_fast_as_with_adamw(llama: Callable[..., Any]) -> None:
    def final_loss(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> float:
        model = llama(seed=1)
        optimizer = make(list(model.parameters()))
        ids = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(2))
        loss = torch.tensor(0.0)
        for _ in range(40):
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    adamw = final_loss(lambda params: torch.optim.AdamW(params, lr=5e-3, weight_decay=0.0))
    apollo = final_loss(lambda params: Apollo(params, lr=5e-3, rank=8))
    mini = final_loss(lambda params: Apollo(params, lr=5e-3, rank=1, scale_type="tensor"))
    assert adamw < 4.0
    assert apollo < adamw + 0.8, (adamw, apollo)
    assert mini < adamw + 1.2, (adamw, mini)
