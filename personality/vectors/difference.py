"""A task vector as the difference of two checkpoints: W_tuned − W_base (Ilharco et al. 2022, arXiv 2212.04089)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from personality.manifests.errors import IncompatibleError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec, aligned_order
from personality.manifests.vector_store import storing
from personality.vectors import delta
from personality.vectors.base import model_config
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.dtypes import COMPOSABLE, TORCH_DTYPES, compute_dtype
from personality.vectors.stored import StoredTask, measure
from personality.vectors.task_vector import open_task_vector
from personality.vectors.tensors import tensor_bytes


@dataclass
class _Plan:
    """Which tensors differ, in which dtype each difference is stored, and what to tell the user."""

    specs: list[TensorSpec] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    plan = _Plan()
    _account(base, tuned, plan, allow_missing=trained_here)
    # A tied model saves its embeddings once; a head that the base's files repeat has moved with them.
    source = {name: name for name in base.specs if name in tuned.specs}
    if trained_here:
        source |= {head: embedding for head, embedding in _tied_copies(base, base) if head not in tuned.specs}
    # What is trained in float32 came from the base rounded to float32.
    dtype = torch.float32 if trained_here else None
    for name, other in source.items():
        spec = base.specs[name]
        found = _difference_dtype(base, tuned, spec, other, dtype, round_to_16=trained_here)
        if found:
            plan.specs.append(TensorSpec(name, found, spec.shape))
    if not plan.specs:
        raise IncompatibleError(
            f"{tuned.folder} holds exactly the base's weights: there is nothing to store",
            "check that this is the fine-tuned checkpoint and not the base",
        )
    plan.specs = aligned_order(plan.specs)
    with storing(repository, delta.header(), plan.specs) as stored:
        for spec in plan.specs:
            difference = _difference(base, tuned, spec.name, source[spec.name], dtype)
            stored.writer.write(spec.name, tensor_bytes(difference.to(TORCH_DTYPES[spec.dtype])))
    vector = open_task_vector(repository, stored.id, "the new vector")
    norm, rounding = measure(vector, base)
    return StoredTask(
        id=stored.id,
        encoding="delta",
        tensors={spec.name: str(spec) for spec in plan.specs},
        bytes=sum(spec.nbytes for spec in plan.specs),
        norm=norm,
        rounding=rounding,
        notes=tuple(plan.notes),
    )


def _account(base: Checkpoint, tuned: Checkpoint, plan: _Plan, *, allow_missing: bool) -> None:
    """Every key of both sides is compared, accepted for a reason, or refused."""
    missing = [name for name in base.specs if name not in tuned.specs]
    extra = [name for name in tuned.specs if name not in base.specs]
    if extra:
        tied = [head for head, _ in _tied_copies(base, tuned) if head in extra]
        plan.notes += [f"`{name}` is the tied copy of the embeddings and adds nothing" for name in tied]
        extra = [name for name in extra if name not in tied]
    if extra or (missing and not allow_missing):
        raise IncompatibleError(
            f"{tuned.folder} is not a fine-tune of this base: {listing(missing)} missing, {listing(extra)} too many",
            "import a checkpoint with the base's own tensor names; for a LoRA adapter give the adapter's folder",
        )
    wrong = [name for name, spec in tuned.specs.items() if name in base.specs and spec.shape != base.specs[name].shape]
    if wrong:
        name = wrong[0]
        raise IncompatibleError(
            f"`{name}` has the shape {list(tuned.specs[name].shape)}, the base's has {list(base.specs[name].shape)}"
            + (f" ({len(wrong)} tensors differ so)" if len(wrong) > 1 else ""),
            "a resized vocabulary or another size of model cannot be a vector of this base",
        )


def _tied_copies(base: Checkpoint, files: Checkpoint) -> list[tuple[str, str]]:
    """Output heads in some files that only repeat the embeddings of a model with tied embeddings, with those."""
    if not model_config(base.folder).get("tie_word_embeddings"):
        return []
    heads = [name for name in files.specs if name.endswith("lm_head.weight")]
    embeddings = [name for name in files.specs if name.endswith(("embed_tokens.weight", "wte.weight"))]
    return [
        (head, embedding)
        for head in heads
        for embedding in embeddings
        if files.digest_of(head) == files.digest_of(embedding)
    ]


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
    kind = tuned.specs[other].dtype
    if spec.dtype not in COMPOSABLE or kind not in COMPOSABLE:
        if spec.dtype == kind and base.digest_of(spec.name) == tuned.digest_of(other):
            return None
        raise IncompatibleError(
            f"`{spec.name}` is {spec.dtype} in the base and {kind} in {tuned.folder}: only floating-point tensors "
            "of 16 to 64 bits can differ",
            "de-quantize both to bfloat16 first",
        )
    difference = _difference(base, tuned, spec.name, other, dtype)
    if not bool(torch.isfinite(difference).all()):
        if spec.dtype == kind and base.digest_of(spec.name) == tuned.digest_of(other):
            return None  # such as a mask of −∞, which nobody trained
        bad = int((~torch.isfinite(difference)).sum())
        raise IncompatibleError(
            f"`{spec.name}` has {bad} NaN or infinite values (in {tuned.folder} or in the base)",
            "a diverged run cannot be imported; use an earlier checkpoint of it",
        )
    if not bool(difference.any()):
        return None
    sixteen_bit_base = spec.dtype in ("BF16", "F16")
    exact = bool((difference.to(torch.bfloat16).to(difference.dtype) == difference).all())
    return "BF16" if exact or (round_to_16 and sixteen_bit_base) else "F32"
