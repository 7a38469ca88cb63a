"""Storing a task vector in an encoding of one's choice, and measuring what that loses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from personality.manifests.errors import UsageError
from personality.manifests.manifest import Residual
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.encoders import Limit, OnTensor, store_delta, store_exact, store_low_rank, store_sparse
from personality.vectors.fine_tune import FineTune
from personality.vectors.low_rank import LowRankVector
from personality.vectors.stored import StoredTask, measure
from personality.vectors.task_vector import TaskVector, open_task_vector
from personality.vectors.tensors import row_blocks

Name = Literal["delta", "exact", "sparse", "low-rank"]
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Encoding:
    """How a vector is to be kept.

    Attributes:
        name: `delta`, `exact`, `sparse` or `low-rank`.
        density: of `sparse`: share of the elements to keep, in (0, 1].
        trim_scope: of `sparse`: a threshold over the whole `vector`, or one per `tensor`.
        rank: of `low-rank`: columns of the factors, at most.

    Raises:
        UsageError: for settings that are missing, impossible, or of another encoding.
    """

    name: Name
    density: float | None = None
    trim_scope: Literal["vector", "tensor"] = "vector"
    rank: int | None = None

    def __post_init__(self) -> None:
        if (self.density is not None) != (self.name == "sparse"):
            raise UsageError(
                f"a density goes with the encoding `sparse`, and it needs one; got {self.density} for `{self.name}`",
                "such as `sparse` with `--density 0.2`",
            )
        if (self.rank is not None) != (self.name == "low-rank"):
            raise UsageError(
                f"a rank goes with the encoding `low-rank`, and it needs one; got {self.rank} for `{self.name}`",
                "such as `low-rank` with `--rank 64`",
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"a density is in (0, 1], got {self.density}", "such as `--density 0.2`")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"a rank is at least 1, got {self.rank}", "such as `--rank 64`")

    def settings(self) -> dict[str, Any]:
        """What a manifest says of it."""
        of_sparse = {"density": self.density, "trim_scope": self.trim_scope} if self.name == "sparse" else {}
        return {"encoding": self.name, **of_sparse, **({"rank": self.rank} if self.rank is not None else {})}


def store_encoded(
    repository: Repository,
    base: Checkpoint,
    source: TaskVector,
    encoding: Encoding,
    *,
    limit: Limit | None = None,
    on_tensor: OnTensor | None = None,
) -> StoredTask:
    """Store a vector in an encoding; what is stored is then read back and compared with what was given.

    Args:
        repository: where.
        base: the weights that it changes.
        source: the vector, opened with the base; or a `FineTune`.
        encoding: to keep it in.
        limit: for `sparse`, and only there.
        on_tensor: told of the tensors; memory holds one at a time, or a few chunks of it.

    Returns:
        The stored vector with its residual: 0 where every element of the difference is what it was.

    Raises:
        IncompatibleError: when nothing is left of it, or an encoding cannot hold it; nothing is stored.
        PersonaError: when the disk is full.
    """
    told = on_tensor or (lambda done, total, name: None)
    if encoding.name == "exact":
        vector_id, tensors = store_exact(repository, base, source, told)
    elif encoding.density is not None:
        if limit is None:
            raise ValueError("a sparse vector is trimmed by limits, and none were given")
        vector_id, tensors = store_sparse(repository, source, encoding.density, encoding.trim_scope, limit, told)
    elif encoding.rank is not None:
        vector_id, tensors = store_low_rank(repository, base, source, encoding.rank, told)
    else:
        vector_id, tensors = store_delta(repository, source, told)
    vector = open_task_vector(repository, vector_id, "the new vector", base=base)
    norm, rounding = measure(vector, base)
    return StoredTask(
        id=vector_id,
        encoding=encoding.name,
        tensors=tensors,
        bytes=sum(spec.nbytes for spec in vector.specs.values()),
        norm=norm,
        rounding=rounding,
        notes=(*(source.notes if isinstance(source, FineTune) else ()), *_carried(vector)),
        residual=residual(source, vector, base),
    )


def _carried(vector: TaskVector) -> list[str]:
    """What a low-rank vector carries dense, in words."""
    if not isinstance(vector, LowRankVector):
        return []
    factored = sum(vector.has_factors(name) for name in vector.shapes)
    return [f"factors of {factored} tensors; {len(vector.shapes) - factored} that have none are carried dense"]


def residual(source: TaskVector, vector: TaskVector, base: Checkpoint) -> Residual:
    """What a vector lacks of another one, ‖source − vector‖ / ‖source‖ (Frobenius), by tensor and as a whole.

    Args:
        source: the vector that should be there; 0 where it changes nothing.
        vector: the one that is there, of no other tensors.
        base: the weights that both change.
    """
    parts, squares, lost = {}, 0.0, 0.0
    for name in source.shapes:
        whole = missing = 0.0
        for start, stop in row_blocks(base.specs[name], _BLOCK_ELEMENTS):
            wanted = source.rows(name, start, stop)
            found = vector.rows(name, start, stop) if name in vector.shapes else torch.zeros_like(wanted)
            whole += _squares(wanted)
            if not torch.equal(wanted, found.to(wanted.dtype)):
                missing += _squares(wanted.double() - found.double())
        if missing:
            parts[name] = math.sqrt(missing / whole) if whole else 1.0
        squares, lost = squares + whole, lost + missing
    return Residual(whole=math.sqrt(lost / squares) if squares else 0.0, tensors=parts)


def _squares(values: Tensor) -> float:
    """Their sum, in float64."""
    norm = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    return norm * norm
