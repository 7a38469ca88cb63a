"""A task vector as the difference of two checkpoints: W_tuned − W_base (Ilharco et al. 2022, arXiv 2212.04089)."""

from __future__ import annotations

import torch

from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec, aligned_order
from personality.manifests.vector_store import storing
from personality.vectors import delta
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import TORCH_DTYPES, compute_dtype
from personality.vectors.fine_tune import account, are_floats, no_change, not_finite, tied_copies
from personality.vectors.stored import StoredTask, measure
from personality.vectors.task_vector import open_task_vector
from personality.vectors.tensors import tensor_bytes


def store_difference(
    repository: Repository, base: Checkpoint, tuned: Checkpoint, *, trained_here: bool = False
) -> StoredTask:
    """Store what a fine-tuned checkpoint changed in the base.

    Each difference is kept in bfloat16 where that is exact (nearly always for a bfloat16 fine-tune of a bfloat16
    base: neighbors differ by few bits), else in float32, so that scale 1 gives the fine-tuned weights back, up to the
    last bit where a difference spans more than float32's 24 bits. What
    training here leaves in float32 is kept in bfloat16 for a 16-bit base: relative to the update that costs at most
    2⁻⁹ per element, far below what rounding the composed weights costs, and it halves the vector's size.

    Args:
        repository: where to store it.
        base: the base's weights.
        tuned: the fine-tuned weights, of the base's keys and shapes.
        trained_here: `tuned` holds only what the model class loads (no multi-token-prediction head, say),
            and it is allowed to round as said above.

    Raises:
        IncompatibleError: for missing or extra keys, other shapes, changed integers, or NaN/Inf; nothing is stored.
    """
    notes = account(base, tuned, allow_missing=trained_here)
    specs = []
    # A tied model saves its embeddings once; a head that the base's files repeat has moved with them.
    source = {name: name for name in base.specs if name in tuned.specs}
    if trained_here:
        source |= {head: embedding for head, embedding in tied_copies(base, base) if head not in tuned.specs}
    # What is trained in float32 came from the base rounded to float32.
    dtype = torch.float32 if trained_here else None
    for name, other in source.items():
        spec = base.specs[name]
        found = _difference_dtype(base, tuned, spec, other, dtype, round_to_16=trained_here)
        if found:
            specs.append(TensorSpec(name, found, spec.shape))
    if not specs:
        raise no_change(tuned)
    specs = aligned_order(specs)
    with storing(repository, delta.header(), specs) as stored:
        for spec in specs:
            difference = _difference(base, tuned, spec.name, source[spec.name], dtype)
            stored.writer.write(spec.name, tensor_bytes(difference.to(TORCH_DTYPES[spec.dtype])))
    vector = open_task_vector(repository, stored.id, "the new vector", base=base)
    norm, rounding = measure(vector, base)
    return StoredTask(
        id=stored.id,
        encoding="delta",
        tensors={spec.name: str(spec) for spec in specs},
        bytes=sum(spec.nbytes for spec in specs),
        norm=norm,
        rounding=rounding,
        notes=tuple(notes),
    )


def _difference(
    base: Checkpoint, tuned: Checkpoint, name: str, other: str, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """W_tuned[other] − W_base[name] in a dtype; None for the base's compute dtype."""
    dtype = dtype or compute_dtype(base.specs[name].dtype)
    return tuned.tensor(other).to(dtype) - base.tensor(name).to(dtype)


def _difference_dtype(
    base: Checkpoint, tuned: Checkpoint, spec: TensorSpec, other: str, dtype: torch.dtype | None, *, round_to_16: bool
) -> str | None:
    """How to store one tensor's difference; None when there is none.

    Raises:
        IncompatibleError: for NaN/Inf, or a change of a tensor that is not floating point.
    """
    if not are_floats(base, tuned, spec.name, other):
        return None
    difference = _difference(base, tuned, spec.name, other, dtype)
    if not bool(torch.isfinite(difference).all()):
        if spec.dtype == tuned.specs[other].dtype and base.digest_of(spec.name) == tuned.digest_of(other):
            return None  # such as a mask of −∞, which nobody trained
        raise not_finite(spec.name, int((~torch.isfinite(difference)).sum()), tuned)
    if not bool(difference.any()):
        return None
    sixteen_bit_base = spec.dtype in ("BF16", "F16")
    exact = bool((difference.to(torch.bfloat16).to(difference.dtype) == difference).all())
    return "BF16" if exact or (round_to_16 and sixteen_bit_base) else "F32"
