from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from personality.manifests.atomic import leftovers
from personality.manifests.errors import CorruptError, NotFoundError, PersonaError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import METADATA_KEY, TensorSpec
from personality.manifests.vector_store import content_digest, open_vector, stored_ids, storing

HEADER: dict[str, Any] = {"kind": "task", "encoding": "delta"}
A, B = TensorSpec("a", "F32", (2,)), TensorSpec("b", "U8", (3,))
BYTES = {"a": b"12345678", "b": b"xyz"}


def store(repository: Repository, specs: list[TensorSpec], header: dict[str, Any] | None = None) -> str:
    with storing(repository, header or HEADER, specs) as stored:
        for spec in specs:
            stored.writer.write(spec.name, BYTES[spec.name])
    return stored.id


def test_a_vector_lies_under_its_id_and_cannot_be_written(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    vector_id = store(repository, [A, B])
    path = tmp_path / "vectors" / vector_id[:2] / f"{vector_id}.safetensors"
    assert stored_ids(repository) == {vector_id: path}
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    file, header = open_vector(repository, vector_id, "listening@1")
    assert header == {"format": 1, **HEADER}
    assert content_digest(file, header) == vector_id
    assert {name: bytes(file.bytes_of(name)) for name in file.specs} == BYTES


def test_the_id_is_of_the_content_and_not_of_the_file(tmp_path: Path) -> None:
    first = store(Repository(tmp_path / "one"), [A, B])
    again = store(Repository(tmp_path / "two"), [B, A])
    assert first == again
    files = [next((tmp_path / name).rglob("*.safetensors")).read_bytes() for name in ("one", "two")]
    assert files[0] != files[1]


@pytest.mark.parametrize(
    ("specs", "header"),
    [
        ([A], HEADER),
        ([TensorSpec("a", "I32", (2,)), B], HEADER),
        ([TensorSpec("a", "F32", (2, 1)), B], HEADER),
        ([A, B], {**HEADER, "scaling": {"a": 0.5}}),
    ],
    ids=["a tensor less", "another dtype", "another shape", "another header"],
)
def test_everything_that_matters_enters_the_id(tmp_path: Path, specs: list[TensorSpec], header: dict[str, Any]) -> None:
    repository = Repository(tmp_path)
    assert store(repository, [A, B]) != store(repository, specs, header)


def test_storing_again_changes_nothing(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    first = store(repository, [A, B])
    data = repository.vector_path(first).read_bytes()
    assert store(repository, [A, B]) == first
    assert repository.vector_path(first).read_bytes() == data
    assert len(stored_ids(repository)) == 1


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    repository = Repository(tmp_path)
    with pytest.raises(type(error)), storing(repository, HEADER, [A, B]) as stored:
        stored.writer.write("a", BYTES["a"])
        raise error
    assert stored_ids(repository) == {}
    assert leftovers(tmp_path) == []


def test_a_tensor_that_never_came(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    with pytest.raises(ValueError, match="1 tensors were announced"), storing(repository, HEADER, [A, B]) as stored:
        stored.writer.write("a", BYTES["a"])
    assert stored_ids(repository) == {}


def test_a_full_disk(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    message = rf"cannot store the vector in {tmp_path}.*: No space left"
    with pytest.raises(PersonaError, match=message) as caught, storing(repository, HEADER, [A, B]):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "persona gc" in caught.value.hint
    assert leftovers(tmp_path) == []


def test_a_missing_file(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    with pytest.raises(NotFoundError, match=r"the tensors of `listening@1` are missing: there is no .*abab") as caught:
        open_vector(repository, "ab" * 32, "listening@1")
    assert "make the vector again" in caught.value.hint


def rewrite_header(path: Path, metadata: dict[str, str]) -> None:
    """Put other metadata into a stored file."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"] = metadata
    raw = json.dumps(header).encode()
    path.chmod(0o644)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + whole[8 + length :])


@pytest.mark.parametrize("found", [2, 99, "1"])
def test_an_unknown_format(tmp_path: Path, found: Any) -> None:
    repository = Repository(tmp_path)
    vector_id = store(repository, [A, B])
    rewrite_header(repository.vector_path(vector_id), {METADATA_KEY: json.dumps({"format": found})})
    with pytest.raises(CorruptError, match=f"vector format {found!r}; this persona reads format 1") as caught:
        open_vector(repository, vector_id, "listening@1")
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {METADATA_KEY: "not JSON"}])
def test_a_file_of_something_else(tmp_path: Path, metadata: dict[str, str]) -> None:
    repository = Repository(tmp_path)
    vector_id = store(repository, [A, B])
    rewrite_header(repository.vector_path(vector_id), metadata)
    with pytest.raises(CorruptError, match="is not a vector of this program") as caught:
        open_vector(repository, vector_id, "listening@1")
    assert caught.value.hint


def test_metadata_that_is_no_object(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    vector_id = store(repository, [A, B])
    rewrite_header(repository.vector_path(vector_id), {METADATA_KEY: "[1]"})
    with pytest.raises(CorruptError, match=r"vector format \[1\]"):
        open_vector(repository, vector_id, "listening@1")
