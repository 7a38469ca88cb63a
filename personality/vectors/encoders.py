"""Writing a task vector into the store, one function per encoding; what it was before does not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec, aligned_order
from personality.manifests.vector_store import storing
from personality.vectors import delta, exact, low_rank, sparse
from personality.vectors.base import weights_digest
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import DTYPE_NAMES, TORCH_DTYPES
from personality.vectors.exact import ExactVector
from personality.vectors.fine_tune import FineTune
from personality.vectors.frames import CHUNK_ELEMENTS, Bytes, Spool
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import matrix_shape, row_blocks, tensor_bytes
from personality.vectors.truncation import Truncated, truncate_matrix

_BLOCK_ELEMENTS = 1 << 20

Limit = Callable[[str], float]
"""The magnitude from which a tensor's elements survive a trim, by its name."""
OnTensor = Callable[[int, int, str], None]
"""Told of every tensor when it is done: its number, of how many, its name."""
Stored = tuple[str, dict[str, str]]
"""A vector's id, and dtype and shape of each base tensor that it changes, as its manifest says them."""


def store_delta(repository: Repository, source: TaskVector, told: OnTensor) -> Stored:
    """Dense, each tensor in the narrowest dtype that holds it; one tensor in memory."""
    specs = aligned_order(
        [TensorSpec(name, _narrowest(_blocks(source, name)), shape) for name, shape in source.shapes.items()]
    )
    with storing(repository, delta.header(), specs) as stored:
        for number, spec in enumerate(specs, 1):
            stored.writer.write(spec.name, tensor_bytes(_whole(source, spec)))
            told(number, len(specs), spec.name)
    return stored.id, {spec.name: str(spec) for spec in specs}


def store_exact(repository: Repository, base: Checkpoint, source: TaskVector, told: OnTensor) -> Stored:
    """The bits of the fine-tuned weights; of base + vector, rounded to the base's dtype, where there are no such.

    Raises:
        IncompatibleError: when no weight changes, or one overflows.
    """
    specs, kept = _tuned_specs(source, base), []
    with Spool(repository) as spool:
        for number, (name, spec) in enumerate(specs.items(), 1):
            old, new = TORCH_DTYPES[base.specs[name].dtype], TORCH_DTYPES[spec.dtype]
            # Only where the base survives the cast to the fine-tune's dtype does "as predicted" mean "unchanged".
            narrowed = torch.promote_types(old, new) != new
            if spool.add(name, _exact_chunks(source, base, spec), keep_zeros=narrowed):
                kept.append(spec)
            told(number, len(specs), name)
        if not kept:
            raise IncompatibleError(
                "added to the base and rounded to its dtype, this vector changes no weight: nothing would be left",
                "keep it as `delta`",
            )
        header = exact.header(kept, weights_digest(base, repository.cache))
        return spool.store(header), {spec.name: str(spec) for spec in kept}


def store_sparse(
    repository: Repository, source: TaskVector, density: float, trim_scope: str, limit: Limit, told: OnTensor
) -> Stored:
    """The elements that reach the limit of their tensor, in the narrowest dtype that holds them."""
    specs = []
    with Spool(repository) as spool:
        for number, (name, shape) in enumerate(source.shapes.items(), 1):
            least = limit(name)
            survivors = (block[_survives(block, least)] for block in _blocks(source, name))
            spec = TensorSpec(name, _narrowest(survivors), shape)
            spool.add(name, _sparse_chunks(source, spec, least))
            specs.append(spec)
            told(number, len(source.shapes), name)
        header = sparse.header(specs, density, trim_scope)
        return spool.store(header), {spec.name: str(spec) for spec in specs}


def store_low_rank(repository: Repository, base: Checkpoint, source: TaskVector, rank: int, told: OnTensor) -> Stored:
    """Float32 factors of every matrix that they make smaller, the nearest of that rank; the rest dense.

    Raises:
        IncompatibleError: when they make no tensor smaller.
    """
    dense: list[TensorSpec] = []
    factored: list[TensorSpec] = []
    for name, shape in source.shapes.items():
        spec = TensorSpec(name, _narrowest(_blocks(source, name)), shape)
        (factored if _is_smaller(spec, rank) else dense).append(spec)
    if not factored:
        raise IncompatibleError(
            f"factors of rank {rank} would not make any of {len(dense)} tensors smaller",
            "give a lower rank, or keep it as `delta`",
        )
    header = low_rank.header(dict.fromkeys((spec.name for spec in factored), 1.0), [], [spec.name for spec in dense])
    owners = {factor: spec.name for spec in factored for factor in _factor_specs(spec, rank)}
    ordered = aligned_order([*owners, *dense])
    found: Truncated | None = None
    with storing(repository, header, ordered) as stored:
        for number, spec in enumerate(ordered, 1):
            owner = owners.get(spec, spec.name)
            if spec not in owners:
                data = _whole(source, spec)
            elif found is None:  # A is followed by its B
                found = _truncated(source, owner, rank)
                data = found.a
            else:
                data, found = found.b, None
            stored.writer.write(spec.name, tensor_bytes(data))
            told(number, len(ordered), owner)
    return stored.id, {name: str(base.specs[name]) for name in source.shapes}


def _is_smaller(spec: TensorSpec, rank: int) -> bool:
    """Whether two float32 factors take less room than the tensor itself; only matrices have any."""
    if len(spec.shape) != 2:
        return False
    return sum(factor.nbytes for factor in _factor_specs(spec, rank)) < spec.nbytes


def _factor_specs(spec: TensorSpec, rank: int) -> tuple[TensorSpec, TensorSpec]:
    """A (rank, in) and B (out, rank) of a matrix."""
    rows, columns = spec.shape
    kept = min(rank, rows, columns)
    return (
        TensorSpec(spec.name + low_rank.SUFFIX_A, "F32", (kept, columns)),
        TensorSpec(spec.name + low_rank.SUFFIX_B, "F32", (rows, kept)),
    )


def _truncated(source: TaskVector, name: str, rank: int) -> Truncated:
    rows, _ = matrix_shape(source.shapes[name])
    whole = source.rows(name, 0, rows)
    return truncate_matrix(whole if whole.dtype == torch.float64 else whole.float(), rank)


def _tuned_specs(source: TaskVector, base: Checkpoint) -> dict[str, TensorSpec]:
    """Names, shapes and dtypes of the weights that a vector makes of the base's."""
    if isinstance(source, (ExactVector, FineTune)):
        return source.tuned
    return {name: base.specs[name] for name in source.shapes}


def _exact_chunks(source: TaskVector, base: Checkpoint, spec: TensorSpec) -> Iterator[Sequence[Bytes]]:
    old = base.tensor(spec.name).reshape(-1)
    matrix = old.reshape(matrix_shape(spec.shape))

    def tuned_rows(name: str, start: int, stop: int) -> Tensor:
        if isinstance(source, (ExactVector, FineTune)):
            return source.tuned_rows(name, start, stop)
        return _applied(name, matrix[start:stop], source.rows(name, start, stop))

    for begin, new in _chunks(tuned_rows, spec):
        yield exact.encoded(new, old[begin : begin + len(new)])


def _applied(name: str, base: Tensor, change: Tensor) -> Tensor:
    """Base + change as a build at scale 1 has it: rounded once, and the base's own bits where nothing changes."""
    dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
    wide = change.to(dtype)
    tuned = torch.where(wide == 0, base, (base.to(dtype) + wide).to(base.dtype))
    if not bool(torch.isfinite(tuned).all()):
        raise IncompatibleError(
            f"`{name}` plus its change has NaN or infinite values in {DTYPE_NAMES[base.dtype]}",
            "keep the vector as `delta`",
        )
    return tuned


def _sparse_chunks(source: TaskVector, spec: TensorSpec, least: float) -> Iterator[Sequence[Bytes]]:
    for _, values in _chunks(source.rows, spec):
        yield sparse.encoded(values.to(TORCH_DTYPES[spec.dtype]), _survives(values, least))


def _survives(values: Tensor, least: float) -> Tensor:
    """Which elements a trim keeps (as `kernels.trim` of the composition does); zeros never."""
    magnitude = (values if values.dtype == torch.float64 else values.float()).abs()
    return (magnitude >= least) & (magnitude > 0)


def _narrowest(blocks: Iterable[Tensor]) -> str:
    """The dtype that holds all values and takes the least room: BF16, F32 or F64."""
    names = ["BF16", "F32", "F64"]
    for block in blocks:
        while names[0] != "F64" and not torch.equal(block.to(TORCH_DTYPES[names[0]]).to(block.dtype), block):
            del names[0]
    return names[0]


def _blocks(source: TaskVector, name: str) -> Iterator[Tensor]:
    # Any dtype will do for the spec: only its shape is looked at.
    for start, stop in row_blocks(TensorSpec(name, "F32", source.shapes[name]), _BLOCK_ELEMENTS):
        yield source.rows(name, start, stop)


def _whole(source: TaskVector, spec: TensorSpec) -> Tensor:
    return source.rows(spec.name, 0, matrix_shape(spec.shape)[0]).to(TORCH_DTYPES[spec.dtype])


def _chunks(rows: Callable[[str, int, int], Tensor], spec: TensorSpec) -> Iterator[tuple[int, Tensor]]:
    """The first element of every chunk, and its elements, (n,)."""
    columns = max(1, matrix_shape(spec.shape)[1])
    for begin in range(0, spec.elements, CHUNK_ELEMENTS):
        end = min(begin + CHUNK_ELEMENTS, spec.elements)
        start, stop = begin // columns, -(-end // columns)
        yield begin, rows(spec.name, start, stop).reshape(-1)[begin - start * columns : end - start * columns]
