"""A task vector as the difference of two checkpoints: W_tuned − W_base (Ilharco et al. 2022, arXiv 2212.04089)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import torch

from personality.manifests.errors import IncompatibleError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec, aligned_order
from personality.manifests.vector_store import storing
from personality.vectors import delta
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.dtypes import COMPOSABLE, compute_dtype
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
    base: neighbors differ by few bits), else in float32, so that scale 1 gives the fine-tuned weights back. What
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
    for name, spec in base.specs.items():
        if name not in tuned.specs:
            continue
        found = _difference_dtype(base, tuned, spec, round_to_16=trained_here)
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
            difference = _difference(base, tuned, spec.name)
            dtype = torch.bfloat16 if spec.dtype == "BF16" else torch.float32
            stored.writer.write(spec.name, tensor_bytes(difference.to(dtype)))
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
        tied = _tied_copies(base, tuned, extra)
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


def _tied_copies(base: Checkpoint, tuned: Checkpoint, extra: list[str]) -> list[str]:
    """Extra output heads that only repeat the embeddings of a model with tied embeddings."""
    config = base.folder / "config.json"
    if not config.is_file() or not json.loads(config.read_bytes()).get("tie_word_embeddings"):
        return []
    embeddings = [name for name in base.specs if name.endswith(("embed_tokens.weight", "wte.weight"))]
    return [
        name
        for name in extra
        if name.endswith("lm_head.weight")
        and any(tuned.digest_of(name) == tuned.digest_of(other) for other in embeddings if other in tuned.specs)
    ]


def _difference(base: Checkpoint, tuned: Checkpoint, name: str) -> torch.Tensor:
    """W_tuned − W_base in the base's compute dtype."""
    dtype = compute_dtype(base.specs[name].dtype)
    return tuned.tensor(name).to(dtype) - base.tensor(name).to(dtype)


def _difference_dtype(base: Checkpoint, tuned: Checkpoint, spec: TensorSpec, *, round_to_16: bool) -> str | None:
    """How to store one tensor's difference; None when there is none.

    Raises:
        IncompatibleError: for NaN/Inf, or a change of a tensor that is not floating point.
    """
    other = tuned.specs[spec.name].dtype
    if spec.dtype not in COMPOSABLE or other not in COMPOSABLE:
        if spec.dtype == other and base.digest_of(spec.name) == tuned.digest_of(spec.name):
            return None
        raise IncompatibleError(
            f"`{spec.name}` is {spec.dtype} in the base and {other} in {tuned.folder}: only floating-point tensors "
            "of 16 to 64 bits can differ",
            "de-quantize both to bfloat16 first",
        )
    difference = _difference(base, tuned, spec.name)
    if not bool(torch.isfinite(difference).all()):
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
