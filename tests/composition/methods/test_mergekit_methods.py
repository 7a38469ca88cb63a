"""mergekit's methods against mergekit itself, per tensor and run whole, and against formulas in float64.

The formulas are written here from the papers and docs/composition.md, without mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from personality.composition.composer import Composer
from personality.composition.methods import whole_tensor
from personality.composition.methods.operand import Operand
from personality.composition.methods.surroundings import drawing
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition, Personality, Use
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.task_vector import open_task_vector
from tests.composition.conftest import NAMES, random_tensor
from tests.composition.test_mergekit import Family, make_family, ulp

SCALES = (0.8, 0.5, 1.2)
SHAPE = (48, 40)
W = random_tensor(SHAPE, 9, 0.5)
SHARED = random_tensor(SHAPE, 4, 0.01)  # what the vectors agree on
TAUS = [random_tensor(SHAPE, seed, 0.02) + SHARED for seed in (1, 2, 3)]


def operands(scales: Sequence[float] = SCALES) -> list[Operand]:
    return [Operand(letter * 64, tau, scale) for letter, tau, scale in zip("abc", TAUS, scales, strict=False)]


def ours(method: str, scales: Sequence[float] = SCALES, seed: int = 0, **parameters: Any) -> Tensor:
    composition = Composition(method=method, parameters=parameters, seed=seed)
    return whole_tensor.delta(composition, "w", W, operands(scales))


def theirs(method: str, taus: Sequence[Tensor], **parameters: Any) -> Tensor:
    """mergekit as its users call it: on weights, in their dtype."""
    from mergekit.merge_methods import merge_tensors

    found: Tensor = merge_tensors([W, *(W + tau for tau in taus)], method, parameters=parameters, base_index=0)
    return found - W


def mask(vector: str, probabilities: Tensor, seed: int = 0) -> Tensor:
    with drawing(seed, "w", vector):
        return torch.bernoulli(probabilities)


# mergekit per tensor ---------------------------------------------------------------------------------

PER_TENSOR: list[tuple[str, tuple[float, ...], dict[str, Any], dict[str, Any]]] = [
    ("breadcrumbs", SCALES, {"density": 0.4}, {"weight": list(SCALES), "density": 0.4, "normalize": False}),
    (
        "breadcrumbs_ties",
        SCALES,
        {"density": 0.4, "gamma": 0.1, "lambda": 1.5, "normalize": "weighted"},
        {"weight": list(SCALES), "density": 0.4, "gamma": 0.1, "lambda": 1.5, "normalize": True},
    ),
    ("breadcrumbs", SCALES, {"rescale": True}, {"weight": list(SCALES), "density": 0.9, "rescale": True}),
    ("sce", (1, 1, 1), {"select_topk": 0.3}, {"select_topk": 0.3}),
    ("sce", (1, 1, 1), {}, {}),
    ("ram", (1, 1, 1), {"epsilon": 0.01}, {"epsilon": 0.01}),
    ("ramplus_tl", (1, 1, 1), {"epsilon": 0.02, "r": 0.5, "alpha": 3}, {"epsilon": 0.02, "r": 0.5, "alpha": 3.0}),
    ("model_stock", (1, 1, 1), {}, {}),
    ("model_stock", (1, 1, 1), {"filter_wise": True}, {"filter_wise": True}),
    ("nuslerp", (0.8, 0.5), {"normalize": "weighted"}, {"weight": [0.8, 0.5]}),
    (
        "nuslerp",
        (0.8, 0.5),
        {"normalize": "weighted", "flatten": False},
        {"weight": [0.8, 0.5], "nuslerp_flatten": False},
    ),
    (
        "nuslerp",
        (0.8, 0.5),
        {"normalize": "weighted", "flatten": False, "row_wise": True},
        {"weight": [0.8, 0.5], "nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
    ("multislerp", SCALES, {"normalize": "weighted"}, {"weight": list(SCALES)}),
    ("multislerp", SCALES, {}, {"weight": list(SCALES), "normalize_weights": False}),
    ("slerp", (0.6,), {}, {"t": 0.6}),
    ("nearswap", (1,), {"t": 0.01}, {"t": 0.01}),
]


@pytest.mark.parametrize(("method", "scales", "mine", "its"), PER_TENSOR)
def test_per_tensor(method: str, scales: tuple[float, ...], mine: dict[str, Any], its: dict[str, Any]) -> None:
    """Within what float32 loses in W + τ − W; one element in 500 may fall on the other side of a threshold."""
    found, expected = ours(method, scales, **mine), theirs(method, TAUS[: len(scales)], **its)
    apart = (found - expected).abs() > 3e-6
    assert float(apart.float().mean()) < 1 / 500
    assert float(expected.abs().max()) > 0.005


RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_with_the_same_mask(method: str, rescale: bool) -> None:
    """mergekit drawing from the same state drops the same elements of a vector."""
    with drawing(5, "w", "a" * 64):
        expected = theirs(method, TAUS[:1], weight=[0.8], density=0.4, rescale=rescale, normalize=False)
    found = ours(method, (0.8,), seed=5, density=0.4, rescale=rescale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert 0.3 < float((found != 0).float().mean()) < 0.5


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_in_bfloat16(method: str) -> None:
    """mergekit's bfloat16 arithmetic, same mask: one unit in the last place and what its roundings lose on the way."""
    from mergekit.merge_methods import merge_tensors

    base = W.bfloat16()
    tuned = (W + TAUS[0]).bfloat16()
    parameters = {"weight": [0.8], "density": 0.5, "rescale": False, "normalize": False}
    with drawing(5, "w", "a" * 64):
        expected: Tensor = merge_tensors([base, tuned], method, parameters=parameters, base_index=0)
    composition = Composition(method=method, parameters={"density": 0.5, "rescale": False}, seed=5)
    delta = whole_tensor.delta(composition, "w", base, [Operand("a" * 64, tuned.float() - base.float(), 0.8)])
    own = (base.float() + delta).bfloat16()
    bound = ulp(torch.maximum(own.abs(), expected.abs()), torch.bfloat16) + delta.abs().double() / 64
    assert bool(((own.double() - expected.double()).abs() <= bound).all())
    assert float((own != base).float().mean()) > 0.3


# float64 ---------------------------------------------------------------------------------------------

Reference = Callable[[list[Tensor]], Tensor]


def elected(x: Tensor, divide: Tensor | None = None) -> Tensor:
    """TIES' election of stacked x_i (vectors, rows, columns); + where they cancel."""
    sign = torch.where(x.sum(0) >= 0, 1.0, -1.0)
    agrees = (x.sign() == sign).double()
    total = (x * agrees).sum(0)
    if divide is None:
        return total
    divisor = (divide.reshape(-1, 1, 1) * agrees).sum(0)
    return total / torch.where(divisor == 0, 1.0, divisor)


def dropped(density: float, *, rescale: bool, seed: int = 0) -> Tensor:
    """x_i of DARE: Bernoulli masks, and the L1 norm restored."""
    found = []
    for operand in operands():
        tau = operand.delta.double()
        kept = tau * mask(operand.vector, torch.full(SHAPE, density), seed)
        found.append(operand.scale * kept * (tau.abs().sum() / kept.abs().sum() if rescale else 1.0))
    return torch.stack(found)


def pruned(density: float, epsilon: float) -> Tensor:
    """x_i of DELLA: probabilities rise with the rank in the row."""
    found = []
    for operand in operands():
        tau = operand.delta.double()
        rank = (tau.abs().unsqueeze(-1) > tau.abs().unsqueeze(-2)).sum(-1).double()
        probability = density - epsilon + rank / (SHAPE[1] - 1) * 2 * epsilon
        kept = tau * mask(operand.vector, probability.float())
        found.append(operand.scale * kept * tau.abs().sum() / kept.abs().sum())
    return torch.stack(found)


def crumbs(density: float, gamma: float) -> Tensor:
    """x_i of Model Breadcrumbs: neither the largest γ nor the smallest."""
    found = []
    for operand in operands():
        tau = operand.delta.double()
        order = tau.abs().reshape(-1).argsort(descending=True)
        first, count = int(gamma * tau.numel()), int(density * tau.numel())
        kept = torch.zeros(tau.numel(), dtype=torch.float64)
        kept[order[first : first + count]] = 1
        found.append(operand.scale * tau * kept.reshape(SHAPE))
    return torch.stack(found)


SCALE = torch.tensor(SCALES, dtype=torch.float64)
X = torch.stack([operand.delta.double() * operand.scale for operand in operands()])


def sce(topk: float) -> Tensor:
    variance = X.var(0, unbiased=False)
    smallest = variance.reshape(-1).sort(descending=True).values[int(topk * variance.numel()) - 1]
    x = X * (variance >= smallest)
    weight = (x**2).mean((1, 2))
    weight = (weight / weight.sum()).reshape(-1, 1, 1)
    sign = torch.where(x.sum(0) >= 0, 1.0, -1.0)
    agrees = (x.sign() == sign) * weight
    found: Tensor = (x * agrees).sum(0) / agrees.sum(0).clamp_min(1e-6)
    return found


def ram(epsilon: float, factor: bool) -> Tensor:
    changes = X.abs() > epsilon
    count = changes.sum(0)
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for x, change in zip(X, changes, strict=True):
        shared, own = change & (count > 1), change & (count == 1)
        strengthened = 1 + 0.1 * min(0.2, int(shared.sum()) / int(own.sum())) if factor else 1.0
        total += torch.where(own, x * strengthened, 0.0) + torch.where(shared, x / count.clamp_min(1), 0.0)
    return total


def model_stock() -> Tensor:
    """Jang et al. 2024, for N fine-tunes: t = N cos θ / (1 + (N − 1) cos θ)."""
    x = X.reshape(3, -1)
    cosines = [float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for i, j in ((0, 1), (0, 2), (1, 2))]
    cosine = sum(cosines) / 3
    return X.mean(0) * (3 * cosine / (1 + 2 * cosine))


def sphere(first: Tensor, second: Tensor, t: float) -> Tensor:
    angle = math.acos(float(first.reshape(-1) @ second.reshape(-1) / (first.norm() * second.norm())))
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


def karcher() -> Tensor:
    """Gradient descent to where the weighted logarithms vanish, and the weighted mean length."""
    points = [W.double(), *(W.double() + tau.double() for tau in TAUS)]
    weights = [1 - sum(SCALES), *SCALES]
    units = [point / point.norm() for point in points]
    mean = units[0]
    for _ in range(200):
        step = torch.zeros(SHAPE, dtype=torch.float64)
        for weight, unit in zip(weights, units, strict=True):
            across = unit - (unit * mean).sum() * mean
            if float(across.norm()) > 0:
                angle = torch.atan2(across.norm(), (unit * mean).sum())
                step += weight * angle * across / across.norm()
        mean = mean * torch.cos(step.norm()) + step * torch.special.sinc(step.norm() / math.pi)
        mean = mean / mean.norm()
    length = sum(weight * float(point.norm()) for weight, point in zip(weights, points, strict=True))
    found: Tensor = mean * length - W.double()
    return found


def arcee(scale: float) -> Tensor:
    base, change = W.double(), TAUS[0].double() * scale
    p, q = (torch.softmax(item, -1) + 1e-8 for item in (base + change, base))
    importance = change.abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = importance.reshape(-1).sort().values
    low, median, high = (ordered[int(share * (ordered.numel() - 1))] for share in (0.25, 0.5, 0.75))
    return torch.where(importance >= median + 1.5 * (high - low), change, 0.0)


FORMULAS: list[tuple[str, tuple[float, ...], dict[str, Any], Callable[[], Tensor]]] = [
    ("dare_linear", SCALES, {"density": 0.3}, lambda: dropped(0.3, rescale=True).sum(0)),
    ("dare_linear", SCALES, {"density": 0.3, "rescale": False}, lambda: dropped(0.3, rescale=False).sum(0)),
    (
        "dare_linear",
        SCALES,
        {"density": 0.3, "normalize": "weighted"},
        lambda: dropped(0.3, rescale=True).sum(0) / sum(SCALES),
    ),
    ("dare_ties", SCALES, {"density": 0.3, "lambda": 2}, lambda: 2 * elected(dropped(0.3, rescale=True))),
    (
        "dare_ties",
        SCALES,
        {"density": 0.3, "normalize": "weighted"},
        lambda: elected(dropped(0.3, rescale=True), SCALE),
    ),
    ("della_linear", SCALES, {"density": 0.5, "epsilon": 0.2}, lambda: pruned(0.5, 0.2).sum(0)),
    ("della", SCALES, {"density": 0.5, "epsilon": 0.2}, lambda: elected(pruned(0.5, 0.2))),
    ("breadcrumbs", SCALES, {"density": 0.3, "gamma": 0.05}, lambda: crumbs(0.3, 0.05).sum(0)),
    ("breadcrumbs_ties", SCALES, {"density": 0.3, "gamma": 0.05}, lambda: elected(crumbs(0.3, 0.05))),
    ("sce", SCALES, {"select_topk": 0.25}, lambda: sce(0.25)),
    ("ram", SCALES, {"epsilon": 0.015}, lambda: ram(0.015, False)),
    ("ramplus_tl", SCALES, {"epsilon": 0.015}, lambda: ram(0.015, True)),
    ("model_stock", SCALES, {}, model_stock),
    ("slerp", (0.6,), {}, lambda: sphere(W.double(), W.double() + TAUS[0].double(), 0.6) - W.double()),
    ("slerp", (-0.6,), {}, lambda: sphere(W.double(), W.double() + TAUS[0].double(), -0.6) - W.double()),
    (
        "nuslerp",
        (0.8, 0.5),
        {},
        lambda: 1.3 * sphere(TAUS[0].double(), TAUS[1].double(), 0.5 / 1.3),
    ),
    (
        "nuslerp",
        (0.8, -0.5),
        {"normalize": "weighted"},
        lambda: sphere(TAUS[0].double(), -TAUS[1].double(), 0.5 / 1.3),
    ),
    (
        "multislerp",
        (0.8, -0.5, 1.2),
        {},
        lambda: direction((0.8, -0.5, 1.2)) * sum(s * float(t.norm()) for s, t in zip(SCALES, TAUS, strict=True)),
    ),
    ("karcher", SCALES, {"max_iter": 100, "tol": 1e-9}, karcher),
    ("arcee_fusion", (0.7,), {}, lambda: arcee(0.7)),
    ("nearswap", (0.7,), {"t": 0.01}, lambda: (TAUS[0].double() * 0.7).clamp(-0.01, 0.01)),
]


def direction(scales: Sequence[float]) -> Tensor:
    total = torch.stack([s * t.double() / t.double().norm() for s, t in zip(scales, TAUS, strict=True)]).sum(0)
    found: Tensor = total / total.norm()
    return found


@pytest.mark.parametrize(("method", "scales", "parameters", "formula"), FORMULAS)
def test_formulas(
    method: str, scales: tuple[float, ...], parameters: dict[str, Any], formula: Callable[[], Tensor]
) -> None:
    found, expected = ours(method, scales, **parameters), formula()
    assert float(expected.abs().max()) > 0.001
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-8)


def test_slerp_of_near_parallel_weights_is_linear() -> None:
    """mergekit goes straight where the cosine exceeds 0.9995, as it does for nearly every fine-tune."""
    small = [Operand("a" * 64, TAUS[0] / 10, 0.6)]
    found = whole_tensor.delta(Composition(method="slerp"), "w", W, small)
    torch.testing.assert_close(found, TAUS[0] / 10 * 0.6, rtol=1e-5, atol=1e-9)


def test_slerp_from_a_base_of_zeros_is_linear() -> None:
    found = whole_tensor.delta(Composition(method="slerp"), "w", torch.zeros(SHAPE), operands((0.6,)))
    assert torch.equal(found, TAUS[0] * 0.6)


# where mergekit fails or decides otherwise ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 1, 4), (5, 1), (1,)])
def test_della_where_there_is_nothing_to_rank(shape: tuple[int, ...]) -> None:
    """Depthwise convolutions, columns and single elements: mergekit divides 0 by 0."""
    from mergekit.merge_methods import merge_tensors

    tau = random_tensor(shape, 1)
    with pytest.raises(RuntimeError, match=r"p >= 0|p_in"):
        merge_tensors(
            [torch.zeros(shape), tau], "della_linear", parameters={"weight": [1.0], "density": 0.5}, base_index=0
        )
    found = whole_tensor.delta(
        Composition(method="della_linear"), "w", torch.zeros(shape), [Operand("a" * 64, tau, 1.0)]
    )
    assert bool(torch.isfinite(found).all())
    assert tau.numel() > 1 or torch.equal(found, tau)


def test_breadcrumbs_of_a_single_element() -> None:
    from mergekit.merge_methods import merge_tensors

    tau = torch.tensor([0.5])
    parameters = {"weight": [1.0], "density": 0.9}
    assert float(merge_tensors([torch.zeros(1), tau], "breadcrumbs", parameters=parameters, base_index=0)) == 0
    found = whole_tensor.delta(Composition(method="breadcrumbs"), "w", torch.zeros(1), [Operand("a" * 64, tau, 1.0)])
    assert torch.equal(found, tau)


def test_cancelling_elements_elect_plus() -> None:
    """As mergekit does; `ties` elects nothing there."""
    pair = [Operand("a" * 64, torch.ones(2, 2), 1.0), Operand("b" * 64, -torch.ones(2, 2), 1.0)]
    composition = Composition(method="dare_ties", parameters={"density": 1})
    assert torch.equal(whole_tensor.delta(composition, "w", torch.zeros(2, 2), pair), torch.ones(2, 2))


def test_a_negative_scale_turns_a_vector_round_where_mergekit_turns_all() -> None:
    parameters = {"weight": [0.5, -1.0], "density": 1.0, "normalize": True}
    total = TAUS[0] * 0.5 - TAUS[1]
    torch.testing.assert_close(theirs("dare_linear", TAUS[:2], **parameters), total / -0.5, rtol=1e-4, atol=1e-6)
    found = ours("dare_linear", (0.5, -1.0), density=1, normalize="weighted")
    torch.testing.assert_close(found, total / 1.5)


def test_the_divergences_of_arcee_fusion_need_float64() -> None:
    """Of rows of 4096 that a fine-tune changed by a thousandth, float32 makes some divergences negative."""
    base, change = random_tensor((32, 4096), 1, 0.02), random_tensor((32, 4096), 2, 2e-4)
    found = {}
    for dtype in (torch.float32, torch.float64):
        p, q = (torch.softmax(item.to(dtype), -1) + 1e-8 for item in (base + change, base))
        found[dtype] = (p * torch.log(p / q)).sum(-1)
    assert bool((found[torch.float32] < 0).any())
    assert bool((found[torch.float64] > 0).all())


# run whole -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(tmp_path_factory.mktemp("family"), "qwen3", torch.float32)


WHOLE: list[tuple[str, tuple[float, ...], dict[str, Any], dict[str, Any], bool]] = [
    ("breadcrumbs", SCALES, {"density": 0.4}, {"density": 0.4, "gamma": 0.01}, True),
    ("breadcrumbs_ties", SCALES, {"density": 0.4}, {"density": 0.4, "gamma": 0.01}, True),
    ("model_stock", (1, 1, 1), {}, {}, False),
    ("multislerp", SCALES, {"normalize": "weighted"}, {}, True),
    ("nuslerp", (0.8, 0.5), {"normalize": "weighted"}, {}, True),
    ("sce", (1, 1, 1), {}, {}, False),
    ("slerp", (0.6,), {}, {"t": 0.6}, False),
    ("nearswap", (1,), {"t": 0.01}, {"t": 0.01}, False),
    ("karcher", (0.5, 0.5), {}, {}, False),
]


@pytest.mark.parametrize(("method", "scales", "mine", "its", "weighted"), WHOLE)
def test_run_whole(
    family: Family,
    tmp_path: Path,
    method: str,
    scales: tuple[float, ...],
    mine: dict[str, Any],
    its: dict[str, Any],
    weighted: bool,
) -> None:
    """A whole float32 merge of a Qwen3 by mergekit's own planner and reader."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    tuned = family.tuned[: len(scales)]
    description: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "parameters": its,
        "models": [
            {"model": str(folder), **({"parameters": {"weight": scale}} if weighted else {})}
            for folder, scale in zip(tuned, scales, strict=True)
        ],
    }
    if method != "karcher":
        description["base_model"] = str(family.base)
    run_merge(
        MergeConfiguration.model_validate(description),
        str(tmp_path),
        options=MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False),
    )
    merged: dict[str, Tensor] = {}
    for path in tmp_path.glob("*.safetensors"):
        merged.update(load_file(path))
    composer = compose(family, Composition(method=method, parameters=mine), scales)
    assert merged.keys() == composer.specs.keys()
    elements = apart = 0
    for name, tensor in merged.items():
        own = composer.tensor(name)
        elements += own.numel()
        apart += int(((own - tensor).abs() > 3e-6).sum())
        assert not torch.equal(own, composer.base.tensor(name))
    assert apart <= elements / 500


def compose(family: Family, composition: Composition, scales: Sequence[float]) -> Composer:
    vectors = family.vectors[: len(scales)]
    uses = tuple(
        Use(behavior=name, number=1, vector=vector, scale=scale)
        for name, vector, scale in zip(NAMES, vectors, scales, strict=False)
    )
    personality = Personality(
        base=BaseIdentity(source="base", fingerprint="0" * 64), composition=composition, uses=uses
    )
    repository = Repository(family.root / "repository")
    opened = {vector: open_task_vector(repository, vector, "vector") for vector in vectors}
    return Composer(Checkpoint(family.base), personality, opened)
