"""The content-addressed store of vectors: immutable, read-only files named by the digest of their tensors."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from personality.manifests.atomic import sync, temporary_beside
from personality.manifests.canonical import digest, short
from personality.manifests.digest_cache import remembered
from personality.manifests.errors import CorruptError, NotFoundError, PersonaError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import METADATA_KEY, TensorFile, TensorSpec, TensorWriter, read_metadata

FORMAT = 1
MAGNITUDES_SUFFIX = ".magnitudes"
"""Of the histogram of a vector's magnitudes, beside it; it can be counted again."""


def logical_digest(header: dict[str, Any], specs: dict[str, TensorSpec], digests: dict[str, str]) -> str:
    """A vector's identity: what it says of itself and each tensor's name, dtype, shape and content.

    The order of tensors in the file, padding and other accidents of the file do not enter.
    """
    tensors = {name: [spec.dtype, list(spec.shape), digests[name]] for name, spec in specs.items()}
    return digest({"header": header, "tensors": tensors})


@dataclass
class StoredVector:
    """What `storing` yields: write the tensors through `writer`; afterwards `id` names the stored vector."""

    writer: TensorWriter
    id: str = field(default="")


@contextlib.contextmanager
def storing(repository: Repository, header: dict[str, Any], specs: Sequence[TensorSpec]) -> Iterator[StoredVector]:
    """Store a vector: write its tensors inside the block; the file gets its name when the block ends well.

    Args:
        repository: where.
        header: what kind of vector it is and how its tensors are to be read; kept in the file.
        specs: the tensors to come, in order.

    Raises:
        PersonaError: when the disk is full; nothing is left behind.
    """
    folder = repository.root / "vectors"
    temporary = temporary_beside(folder / "vector")
    header = {"format": FORMAT, **header}
    try:
        with telling_of_full_disks(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                stored = StoredVector(TensorWriter(file, specs, header))
                yield stored
                _finish(file, stored)
            stored.id = logical_digest(header, {spec.name: spec for spec in specs}, stored.writer.digests)
            path = repository.vector_path(stored.id)
            path.parent.mkdir(exist_ok=True)
            temporary.chmod(0o444)
            temporary.replace(path)
            sync(path.parent)
            sync(folder)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def telling_of_full_disks(folder: Path) -> Iterator[None]:
    """What the disk refuses inside the block becomes an error with the way out.

    Args:
        folder: in which a vector is stored, for the error.

    Raises:
        PersonaError: for any error of the operating system.
    """
    try:
        yield
    except OSError as error:
        raise PersonaError(
            f"cannot store the vector in {folder}: {error.strerror or error}",
            "free some room (`persona gc` removes caches), then run the command again",
        ) from error


def _finish(file: BinaryIO, stored: StoredVector) -> None:
    stored.writer.finish()
    file.flush()
    os.fsync(file.fileno())


def open_vector(repository: Repository, vector_id: str, label: str) -> tuple[TensorFile, dict[str, Any]]:
    """Open a stored vector.

    Args:
        repository: where.
        vector_id: its id.
        label: such as `listening@3`, for errors.

    Returns:
        The file and its header.

    Raises:
        NotFoundError: when the file is missing.
        CorruptError: when it is damaged or was written by another generation of the program.
    """
    file = TensorFile(_path(repository, vector_id, label))
    return file, read_header(file, f"`{label}` ({short(vector_id)})")


def _path(repository: Repository, vector_id: str, label: str) -> Path:
    """Where a vector's file lies.

    Raises:
        NotFoundError: when it is missing.
    """
    path = repository.vector_path(vector_id)
    if not path.is_file():
        raise NotFoundError(
            f"the tensors of `{label}` are missing: there is no {path}",
            "vectors are not in git by default: copy the file from where it was made, or make the vector again",
        )
    return path


def open_verified(
    repository: Repository, vector_id: str, label: str, *, reread: bool = False
) -> tuple[TensorFile, dict[str, Any]]:
    """Open a stored vector and check that its content is what its id says.

    Args:
        repository, vector_id, label: see `open_vector`.
        reread: hash the file even when it has not been touched since it was last hashed.

    Raises:
        NotFoundError, CorruptError: see `open_vector`, and for content that was changed.
    """
    file, header = open_vector(repository, vector_id, label)
    cache = None if reread else repository.cache
    found = remembered(cache, "vector", [file.path], lambda: content_digest(file, header))
    if found != vector_id:
        raise CorruptError(
            f"`{label}` was tampered with or damaged: its tensors have the digest {short(found)}, "
            f"its id is {short(vector_id)} ({file.path})",
            "copy the file again from where it was made, or make the vector again",
        )
    return file, header


def vector_kind(repository: Repository, vector_id: str, label: str) -> str:
    """`task` or `steering`: what a stored vector's file says of itself; arguments and errors as `open_vector`.

    Its tensors are not looked at: a large one has tens of thousands.
    """
    path = _path(repository, vector_id, label)
    return str(_header(read_metadata(path), path, f"`{label}` ({short(vector_id)})").get("kind"))


def read_header(file: TensorFile, name: str) -> dict[str, Any]:
    """What a vector's file says of itself.

    Raises:
        CorruptError: when it says nothing, or has a format that is not known here.
    """
    return _header(file.metadata, file.path, name)


def _header(metadata: dict[str, str], path: Path, name: str) -> dict[str, Any]:
    try:
        header = json.loads(metadata[METADATA_KEY])
    except (KeyError, ValueError) as error:
        raise CorruptError(
            f"{path}, the file of {name}, is not a vector of this program",
            "copy the file again from where it was made, or make the vector again",
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CorruptError(
            f"{name} has vector format {header.get('format') if isinstance(header, dict) else header!r}; "
            f"this persona reads format {FORMAT}",
            "install the persona that wrote it: `pip install -U personality`",
        )
    return header


def content_digest(file: TensorFile, header: dict[str, Any]) -> str:
    """Read a vector whole and give the id that its content should have."""
    return logical_digest(header, file.specs, {name: file.digest_of(name) for name in file.specs})


def stored_ids(repository: Repository, suffix: str = ".safetensors") -> dict[str, Path]:
    """Every vector file in the store, by id; or what is kept beside each under another suffix."""
    return {path.stem: path for path in sorted((repository.root / "vectors").glob(f"??/*{suffix}"))}
