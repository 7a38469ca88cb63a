"""A fine-tuned checkpoint beside its base: every key accounted for, every change readable."""

from __future__ import annotations

import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.base import model_config
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.dtypes import COMPOSABLE, DTYPE_NAMES, INTEGERS, TORCH_DTYPES, compute_dtype
from personality.vectors.tensors import matrix_shape, row_blocks

_BLOCK_ELEMENTS = 1 << 20


class FineTune:
    """A task vector that is not stored yet: what a fine-tuned checkpoint changed in the base.

    Args:
        base: the base's weights.
        files: the fine-tuned weights, of the base's keys and shapes.

    Attributes:
        shapes: shape of each tensor that differs, be it in the sign of a zero.
        specs, tuned: dtype and shape of these in the fine-tune.
        path: the fine-tune's folder.
        notes: what a user should know of how the files were read.

    Raises:
        IncompatibleError: for missing or extra keys, other shapes, changed integers, NaN/Inf, or no change at all.
    """

    def __init__(self, base: Checkpoint, files: Checkpoint) -> None:
        self._base, self._files = base, files
        self.notes = account(base, files)
        self.tuned: dict[str, TensorSpec] = {
            name: files.specs[name]
            for name in base.specs
            if are_floats(base, files, name, name) and self._differs(name)
        }
        if not self.tuned:
            raise no_change(files)
        self.specs = self.tuned
        self.path = files.folder
        self.shapes = {name: spec.shape for name, spec in self.tuned.items()}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of W_tuned − W_base seen as a matrix, (stop − start, columns), in the base's compute dtype."""
        dtype = compute_dtype(self._base.specs[name].dtype)
        return self.tuned_rows(name, start, stop).to(dtype) - _matrix(self._base, name)[start:stop].to(dtype)

    def tuned_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of W_tuned seen as a matrix, in its own dtype, memory-mapped."""
        return _matrix(self._files, name)[start:stop]

    def _differs(self, name: str) -> bool:
        """Whether a tensor differs in any bit of its values; refused for NaN and infinite values."""
        wide = torch.promote_types(*(TORCH_DTYPES[side.specs[name].dtype] for side in (self._base, self._files)))
        bits = INTEGERS[DTYPE_NAMES[wide]]
        differs, bad = False, 0
        for start, stop in row_blocks(self._base.specs[name], _BLOCK_ELEMENTS):
            old, new = (_matrix(side, name)[start:stop].to(wide) for side in (self._base, self._files))
            differs = differs or not torch.equal(old.view(bits), new.view(bits))
            bad += int((~torch.isfinite(self.rows(name, start, stop))).sum())
        if bad and differs:  # a mask of −∞ that nobody trained is a tensor like any other
            raise not_finite(name, bad, self._files)
        return differs


def account(base: Checkpoint, tuned: Checkpoint, *, allow_missing: bool = False) -> list[str]:
    """Every key of both sides is compared, accepted for a reason, or refused.

    Args:
        base, tuned: the base's and the fine-tuned weights.
        allow_missing: `tuned` holds only what the model class loads.

    Returns:
        Notes on what was accepted and adds nothing.

    Raises:
        IncompatibleError: for missing or extra keys, or other shapes.
    """
    notes = []
    missing = [name for name in base.specs if name not in tuned.specs]
    extra = [name for name in tuned.specs if name not in base.specs]
    if extra:
        tied = [head for head, _ in tied_copies(base, tuned) if head in extra]
        notes = [f"`{name}` is the tied copy of the embeddings and adds nothing" for name in tied]
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
    return notes


def tied_copies(base: Checkpoint, files: Checkpoint) -> list[tuple[str, str]]:
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


def are_floats(base: Checkpoint, tuned: Checkpoint, name: str, other: str) -> bool:
    """Whether a tensor of the base, and its counterpart in the fine-tune, can differ; False where they are the same.

    Raises:
        IncompatibleError: for a change of a tensor that is not floating point.
    """
    dtype, kind = base.specs[name].dtype, tuned.specs[other].dtype
    if dtype in COMPOSABLE and kind in COMPOSABLE:
        return True
    if dtype == kind and base.digest_of(name) == tuned.digest_of(other):
        return False
    raise IncompatibleError(
        f"`{name}` is {dtype} in the base and {kind} in {tuned.folder}: only floating-point tensors "
        "of 16 to 64 bits can differ",
        "de-quantize both to bfloat16 first",
    )


def not_finite(name: str, count: int, tuned: Checkpoint) -> IncompatibleError:
    """The refusal of a difference with so many NaN or infinite values."""
    return IncompatibleError(
        f"`{name}` has {count} NaN or infinite values (in {tuned.folder} or in the base)",
        "a diverged run cannot be imported; use an earlier checkpoint of it",
    )


def no_change(tuned: Checkpoint) -> IncompatibleError:
    """The refusal of a checkpoint that is the base."""
    return IncompatibleError(
        f"{tuned.folder} holds exactly the base's weights: there is nothing to store",
        "check that this is the fine-tuned checkpoint and not the base",
    )


def _matrix(checkpoint: Checkpoint, name: str) -> Tensor:
    return checkpoint.tensor(name).reshape(matrix_shape(checkpoint.specs[name].shape))
