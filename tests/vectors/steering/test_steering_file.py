"""A steering vector on disk: everything that decides how it acts is part of its identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personality.manifests.errors import CorruptError, IncompatibleError, UsageError
from personality.manifests.repository import Repository
from personality.manifests.vector_store import vector_kind
from personality.vectors.steering.steering_file import open_steering, store_steering
from personality.vectors.steering.steering_vector import Gate, SteeringVector
from personality.vectors.task_vector import open_task_vector


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.prepare(tmp_path / "r")


def sample(seed: int = 0, width: int = 6) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    tensors = {layer: torch.randn(width, generator=generator) for layer in (0, 2, 11)}
    return SteeringVector(tensors, "decision", "add", (2, 11), 0.75, Gate(0, torch.ones(width), 1.5, False))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), width=st.integers(1, 40))
def test_what_is_stored_comes_back_bit_for_bit(repository: Repository, seed: int, width: int) -> None:
    vector = sample(seed, width)
    stored = store_steering(repository, vector)
    found = open_steering(repository, stored.id, "a@1")
    assert found.tensors.keys() == vector.tensors.keys()
    assert all(torch.equal(found.tensors[layer], vector.tensors[layer]) for layer in vector.tensors)
    assert replace(found, tensors={}, gate=None) == replace(vector, tensors={}, gate=None)
    assert found.gate is not None
    assert vector.gate is not None
    assert torch.equal(found.gate.direction, vector.gate.direction)
    assert (found.gate.layer, found.gate.threshold, found.gate.above) == (0, 1.5, False)
    assert stored.norm == pytest.approx(found.norm)
    assert vector_kind(repository, stored.id, "a@1") == "steering"


def test_where_and_how_it_acts_is_part_of_its_identity(repository: Repository) -> None:
    vector = sample()
    changed = [
        replace(vector, positions="all"),
        replace(vector, mode="project"),
        replace(vector, layers=(2,)),
        replace(vector, joint=1.0),
        replace(vector, gate=None),
        replace(vector, tensors={**vector.tensors, 2: vector.tensors[2] * 2}),
    ]
    ids = {store_steering(repository, item).id for item in (vector, *changed)}
    assert len(ids) == 7
    assert store_steering(repository, sample()).id in ids


def test_nothing_is_stored_of_a_vector_that_cannot_act(repository: Repository) -> None:
    with pytest.raises(IncompatibleError, match="NaN"):
        store_steering(repository, replace(sample(), tensors={2: torch.tensor([float("inf")])}, layers=(2,)))
    assert not list((repository.root).glob("vectors/*/*"))


def test_a_tampered_file_is_told(repository: Repository) -> None:
    stored = store_steering(repository, sample())
    path = repository.vector_path(stored.id)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptError, match="tampered with or damaged"):
        open_steering(repository, stored.id, "a@1")


def test_it_is_no_task_vector(repository: Repository) -> None:
    stored = store_steering(repository, sample())
    with pytest.raises(UsageError, match="`a@1` is a steering vector: it acts on activations"):
        open_task_vector(repository, stored.id, "a@1")
