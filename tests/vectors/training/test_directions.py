from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personality.manifests.errors import IncompatibleError
from personality.manifests.repository import Repository
from personality.vectors import low_rank
from personality.vectors.task_vector import TaskVector, open_task_vector
from personality.vectors.training.directions import denoise, directions_of, random_directions
from tests.composition.conftest import random_tensor, store

TENSORS = {
    "layers.0.q.weight": random_tensor((5, 4), 1),
    "layers.0.experts": random_tensor((3, 4, 2), 2, dtype=torch.bfloat16),
    "layers.0.norm.weight": random_tensor((5,), 3),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


@pytest.fixture
def vector(tmp_path: Path) -> TaskVector:
    repository = Repository(tmp_path)
    return open_task_vector(repository, store(repository, TENSORS), "listening@1")


def test_a_stored_vector_becomes_dense_directions(vector: TaskVector) -> None:
    found = directions_of(vector, {**SHAPES, "layers.1.q.weight": (5, 4)})
    assert (found.left_out, found.notes) == ((), ())
    assert set(found.tensors) == set(TENSORS)
    for name, tensor in found.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, TENSORS[name].float())


def test_a_low_rank_vector_becomes_dense_directions(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    a, b = random_tensor((2, 4), 1), random_tensor((5, 2), 2)
    factors = {"w" + low_rank.SUFFIX_A: a, "w" + low_rank.SUFFIX_B: b}
    vector = open_task_vector(repository, store(repository, factors, low_rank.header({"w": 2.0}, [])), "listening@1")
    torch.testing.assert_close(directions_of(vector, {"w": (5, 4)}).tensors["w"], 2.0 * b @ a)


def test_tensors_that_are_not_trained_are_left_out_and_told(vector: TaskVector) -> None:
    shapes = {"layers.0.q.weight": (5, 4), "layers.0.experts": (3, 2, 4)}
    found = directions_of(vector, shapes)
    assert set(found.tensors) == {"layers.0.q.weight"}
    assert found.left_out == ("layers.0.experts", "layers.0.norm.weight")
    assert "2 of 3" in found.notes[0]


def test_nothing_in_common_is_refused(vector: TaskVector) -> None:
    with pytest.raises(IncompatibleError, match=r"3 tensors .* nothing in the 1 that are trained here"):
        directions_of(vector, {"layers.0.q.weight": (4, 5)})


def test_random_directions_have_the_same_norms_and_nothing_else_in_common() -> None:
    torch.manual_seed(0)
    given_ = {"b": torch.randn(40, 30), "a": torch.randn(3, 20, 20), "zero": torch.zeros(5)}
    found = random_directions(given_, seed=3)
    again = random_directions(dict(reversed(given_.items())), seed=3)
    other = random_directions(given_, seed=4)
    for name, tensor in given_.items():
        assert found[name].shape == tensor.shape
        assert float(found[name].norm()) == pytest.approx(float(tensor.norm()), rel=1e-5)
        assert torch.equal(found[name], again[name])
    for name in ("a", "b"):
        cosine = torch.nn.functional.cosine_similarity(found[name].flatten(), given_[name].flatten(), dim=0)
        assert abs(float(cosine)) < 0.15
        assert not torch.equal(found[name], other[name])


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), top=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_denoising_projects_onto_the_strongest_singular_vectors(rows: int, columns: int, top: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, direction = torch.randn(2, rows, columns, generator=generator)
    found = denoise(direction, weight, top)
    left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
    left, right = left[:, :top], right[:top]
    expected = left @ left.T @ direction.double() @ right.T @ right
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(denoise(found, weight, top), found, atol=1e-4, rtol=1e-4)
    assert float(found.norm()) <= float(direction.norm()) * (1 + 1e-5)


def test_denoising_keeps_a_weights_own_strong_part_and_drops_what_is_orthogonal() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 8)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    strong = values[0] * left[:, :1] @ right[:1]
    torch.testing.assert_close(denoise(strong, weight, 1), strong, atol=1e-4, rtol=1e-4)
    assert float(denoise(left[:, 1:2] @ right[1:2], weight, 1).norm()) < 1e-5


def test_packed_experts_are_denoised_one_by_one_and_vectors_not_at_all() -> None:
    torch.manual_seed(0)
    weight, direction = torch.randn(2, 3, 6, 5)
    found = denoise(direction, weight, 2)
    for expert in range(3):
        torch.testing.assert_close(found[expert], denoise(direction[expert], weight[expert], 2), atol=1e-5, rtol=1e-5)
    assert torch.equal(denoise(direction[0, 0], weight[0, 0], 2), direction[0, 0])
    with pytest.raises(IncompatibleError, match=r"\[5\].*\[6, 5\]"):
        denoise(direction[0, 0], weight[0])


def test_a_large_weights_randomized_basis_agrees_with_the_exact_one() -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 40))[0] for size in (1100, 1030))
    weight = left @ torch.diag(0.9 ** torch.arange(40.0)) @ right.T + 1e-3 * torch.randn(1100, 1030)
    direction = torch.randn(1100, 1030)
    state = torch.get_rng_state()
    found = denoise(direction, weight, 16)
    assert torch.equal(torch.get_rng_state(), state)
    u, _, v = torch.linalg.svd(weight, full_matrices=False)
    u, v = u[:, :16], v[:16]
    expected = u @ (u.T @ direction @ v.T) @ v
    assert float((found - expected).norm() / expected.norm()) < 0.01
