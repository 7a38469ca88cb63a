from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from personality.manifests.errors import CorruptError, NotFoundError
from personality.manifests.repository import Repository
from personality.vectors.task_vector import open_task_vector
from tests.composition.conftest import random_tensor, same_bits, store

TENSORS = {"w": random_tensor((5, 4), 1), "b": random_tensor((5,), 2, dtype=torch.bfloat16), "s": torch.tensor(2.5)}


def test_a_dense_vector_gives_back_what_was_stored(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    vector = open_task_vector(repository, store(repository, TENSORS), "listening@1")
    assert vector.shapes == {"w": (5, 4), "b": (5,), "s": ()}
    assert same_bits(vector.rows("w", 1, 3), TENSORS["w"][1:3].clone())
    assert same_bits(vector.rows("b", 0, 5), TENSORS["b"].reshape(5, 1))
    assert same_bits(vector.rows("s", 0, 1), TENSORS["s"].reshape(1, 1))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


@pytest.mark.parametrize("place", [-1, -40, -90])
def test_one_flipped_bit_is_noticed(tmp_path: Path, place: int) -> None:
    repository = Repository(tmp_path)
    vector_id = store(repository, TENSORS)
    open_task_vector(repository, vector_id, "listening@1")  # remembered as good
    path = repository.vector_path(vector_id)
    flip(path, place)
    with pytest.raises(CorruptError, match="`listening@1` was tampered with or damaged") as caught:
        open_task_vector(repository, vector_id, "listening@1")
    assert vector_id[:12] in caught.value.message
    assert str(path) in caught.value.message
    assert "make the vector again" in caught.value.hint


def test_reread_trusts_no_time_stamp(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    vector_id = store(repository, TENSORS)
    path = repository.vector_path(vector_id)
    open_task_vector(repository, vector_id, "listening@1")
    before = path.stat()
    flip(path, -1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptError, match="tampered"):
        open_task_vector(repository, vector_id, "listening@1", reread=True)


def test_another_vector_under_this_name(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    first, second = store(repository, TENSORS), store(repository, {"w": torch.ones(2)})
    path = repository.vector_path(first)
    path.unlink()
    path.write_bytes(repository.vector_path(second).read_bytes())
    with pytest.raises(CorruptError, match=f"have the digest {second[:12]}, its id is {first[:12]}"):
        open_task_vector(repository, first, "listening@1")


def test_a_truncated_file(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    vector_id = store(repository, TENSORS)
    path = repository.vector_path(vector_id)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-5])
    with pytest.raises(CorruptError, match=f"its header promises {len(data)} bytes, the file has {len(data) - 5}"):
        open_task_vector(repository, vector_id, "listening@1")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="the tensors of `listening@1` are missing"):
        open_task_vector(Repository(tmp_path), "ab" * 32, "listening@1")


def test_an_unknown_encoding(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    vector_id = store(repository, TENSORS, {"kind": "task", "encoding": "sketch"})
    with pytest.raises(
        CorruptError, match="has the encoding 'sketch'; known here: delta, exact, low-rank, sparse"
    ) as caught:
        open_task_vector(repository, vector_id, "listening@1")
    assert "pip install" in caught.value.hint
