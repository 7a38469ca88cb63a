"""A task vector whatever its encoding, and opening one from the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from personality.manifests.canonical import short
from personality.manifests.errors import CorruptError, IncompatibleError, UsageError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorFile, TensorSpec
from personality.manifests.vector_store import open_verified
from personality.vectors import delta, exact, low_rank, sparse
from personality.vectors.base import weights_digest
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.delta import DeltaVector
from personality.vectors.exact import ExactVector
from personality.vectors.low_rank import LowRankVector
from personality.vectors.sparse import SparseVector


class TaskVector(Protocol):
    """What composition needs of a vector.

    Attributes:
        shapes: shape of each base tensor that it changes.
        specs: the tensors that are stored.
        path: the file.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    specs: dict[str, TensorSpec]

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of one tensor's difference, seen as a matrix; any float dtype. Several threads may ask at once."""
        ...


# An encoding is one file and one line here: made of a file, its header, and the base where that is at hand.
ENCODINGS: dict[str, Callable[[TensorFile, dict[str, Any], Checkpoint | None], TaskVector]] = {
    delta.ENCODING: lambda file, header, base: DeltaVector(file, header),
    exact.ENCODING: ExactVector,
    low_rank.ENCODING: lambda file, header, base: LowRankVector(file, header),
    sparse.ENCODING: lambda file, header, base: SparseVector(file, header),
}


def open_task_vector(
    repository: Repository, vector_id: str, label: str, *, reread: bool = False, base: Checkpoint | None = None
) -> TaskVector:
    """Open a stored vector and check that its content is what its id says.

    Args:
        repository: where.
        vector_id: its id.
        label: such as `listening@3`, for errors.
        reread: hash the file even when it has not been touched since it was last hashed.
        base: the weights that it changes. Rows of some encodings cannot be read without; None where none are.

    Raises:
        NotFoundError: when its file is missing.
        CorruptError: when it is damaged, tampered with or of an unknown encoding.
        IncompatibleError: when its file names the weights of another base.
        UsageError: when it is a steering vector.
    """
    file, header = open_verified(repository, vector_id, label, reread=reread)
    if header.get("kind") == "steering":
        raise UsageError(
            f"`{label}` is a steering vector: it acts on activations and holds no change of weights",
            "give a task vector (`persona vectors` lists both); `persona promote` makes one of it",
        )
    encoding = ENCODINGS.get(header.get("encoding", ""))
    if encoding is None:
        raise CorruptError(
            f"`{label}` has the encoding {header.get('encoding')!r}; known here: {', '.join(sorted(ENCODINGS))}",
            "install the persona that wrote it: `pip install -U personality`",
        )
    # A dense difference can be added to anything of its shape; bits relative to a base mean something with that alone.
    if base is not None and "base" in header and header["base"] != (found := weights_digest(base, repository.cache)):
        raise IncompatibleError(
            f"`{label}` holds changes of weights with the digest {str(header['base'])[:12]}; "
            f"the base's have {short(found)}",
            f"it was made for another base: `persona show {label}` says for which",
        )
    return encoding(file, header, base)
