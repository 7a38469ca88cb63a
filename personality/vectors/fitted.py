"""A fine-tuned checkpoint brought to its base's keys and shapes, where what differs cannot be a change of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from personality.manifests.canonical import digest_bytes
from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.parameter_names import parameter_names
from personality.vectors.tensors import tensor_bytes
from personality.vectors.tied_ends import EMBEDDINGS, HEAD, is_tied

_VOCABULARY = (*EMBEDDINGS, HEAD, "embed_in.weight", "embed_out.weight")
"""Endings of the names of what has one row for each token."""


class FittedCheckpoint(Checkpoint):
    """A fine-tune seen with the base's keys and shapes.

    - Tensors that the fine-tune's class does not load (heads for several tokens, a vision tower beside a class for
      text) cannot have been trained by it, and are the base's.
    - A tied model needs no head: one that only the fine-tune's files repeat is left out, one that only the base's files
      repeat is the fine-tune's embeddings.
    - Embeddings and output heads that were padded to another number of rows: rows that no token of either tokenizer
      stands for are the base's.

    Args:
        base: the base's weights.
        tuned: the fine-tuned weights, as they lie on disk.

    Attributes:
        notes: what was taken from the base, and why.

    Raises:
        IncompatibleError: when the number of rows differs and more than padding may do so.
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint) -> None:
        self.folder, self.files = tuned.folder, tuned.files
        self._base, self._tuned = base, tuned
        self._repeated = _repeated_heads(base, tuned) if is_tied(base) else {}
        further = _repeated_heads(tuned, base) if is_tied(base) else {}
        self._absent = _unread(base, tuned, self._repeated)
        self._rows = _padded(base, tuned)
        self._made: tuple[str, Tensor] | None = None
        self.specs: dict[str, TensorSpec] = {name: spec for name, spec in tuned.specs.items() if name not in further}
        for name in (*self._absent, *self._rows, *self._repeated):
            self.specs[name] = TensorSpec(name, self._dtype(name), base.specs[name].shape)
        self.notes: tuple[str, ...] = tuple(
            f"`{head}` is the tied copy of the embeddings and adds nothing" for head in further
        )
        for head, embeddings in self._repeated.items():
            self.notes += (f"`{head}` is not in it: in the base it repeats `{embeddings}`, and moves with that",)
        if self._absent:
            self.notes += (
                f"it lacks {listing(self._absent)}, which its model class does not load; a build keeps the base's",
            )
        for name, rows in self._rows.items():
            self.notes += (
                f"`{name}` has {tuned.specs[name].shape[0]} rows, the base's has {base.specs[name].shape[0]}: both "
                f"hold every token, what lies from row {rows} on is padding, and a build keeps the base's",
            )

    def _dtype(self, name: str) -> str:
        if name in self._absent:
            return self._base.specs[name].dtype
        return self._tuned.specs[self._repeated.get(name, name)].dtype

    def tensor(self, name: str) -> Tensor:
        """A tensor of the base's shape; memory-mapped, but for one that had to be lengthened."""
        if name in self._absent:
            return self._base.tensor(name)
        name = self._repeated.get(name, name)
        tensor = self._tuned.tensor(name)
        if name not in self._rows:
            return tensor
        rows, own = self._rows[name], self._base.tensor(name)
        if rows == own.shape[0]:
            return tensor[:rows]
        if self._made is None or self._made[0] != name:  # only the last is kept: such a tensor is a model's largest
            self._made = name, torch.cat([tensor[:rows], own[rows:].to(tensor.dtype)])
        return self._made[1]

    def bytes_of(self, name: str) -> memoryview:
        """A tensor's bytes."""
        return tensor_bytes(self.tensor(name))

    def digest_of(self, name: str) -> str:
        """SHA-256 of a tensor's bytes."""
        if name in self._absent:
            return self._base.digest_of(name)
        name = self._repeated.get(name, name)
        return digest_bytes(self.bytes_of(name)) if name in self._rows else self._tuned.digest_of(name)


def fitted(base: Checkpoint, tuned: Checkpoint) -> tuple[Checkpoint, tuple[str, ...]]:
    """A fine-tune with the base's keys and shapes, as far as that can be had without losing a change, and notes.

    Raises:
        IncompatibleError: see `FittedCheckpoint`.
    """
    found = FittedCheckpoint(base, tuned)
    return (found, found.notes) if found.notes else (tuned, ())


def _repeated_heads(files: Checkpoint, others: Checkpoint) -> dict[str, str]:
    """Output heads that only some files have, each with the embeddings that it repeats there."""
    heads = [name for name in files.specs if name.endswith(HEAD) and name not in others.specs]
    tables = [name for name in files.specs if name.endswith(EMBEDDINGS) and name in others.specs]
    return {head: name for head in heads for name in tables if files.digest_of(name) == files.digest_of(head)}


def _unread(base: Checkpoint, tuned: Checkpoint, repeated: Mapping[str, str]) -> list[str]:
    """Tensors of the base that the fine-tune lacks as its class does not load them; none if any other is missing."""
    missing = [name for name in base.specs if name not in tuned.specs and name not in repeated]
    if not missing:
        return []
    for view in parameter_names(base, tuned.folder):
        if view.unread.issuperset(missing) and view.unread.isdisjoint(tuned.specs):
            return missing
    return []


def _padded(base: Checkpoint, tuned: Checkpoint) -> dict[str, int]:
    """By name of embeddings and heads of another length: the number of rows that both have."""
    shapes = {
        name: (spec.shape, base.specs[name].shape)
        for name, spec in tuned.specs.items()
        if name in base.specs and spec.shape != base.specs[name].shape
    }
    if not shapes or not all(
        name.endswith(_VOCABULARY) and len(new) == len(old) == 2 and new[1] == old[1]
        for name, (new, old) in shapes.items()
    ):
        return {}  # another size of model; the comparison of keys and shapes says so
    common = {name: min(new[0], old[0]) for name, (new, old) in shapes.items()}
    tokens = {folder: token_count(folder) for folder in (base.folder, tuned.folder)}
    known = [count for count in tokens.values() if count is not None]
    name, rows = min(common.items(), key=lambda item: item[1])
    (new, old) = shapes[name]
    sizes = f"`{name}` has {new[0]} rows, the base's has {old[0]}"
    if tokens[base.folder] is None:
        raise IncompatibleError(
            f"{sizes}, and without a tokenizer.json beside the base nobody can say which of them are padding",
            "put the base's tokenizer.json into its folder; or give the fine-tune the base's number of rows: "
            f"`model.resize_token_embeddings({old[0]})`, `save_pretrained`",
        )
    if max(known) > rows:
        whose = "the fine-tune" if (tokens[tuned.folder] or 0) > rows else "the base"
        raise IncompatibleError(
            f"{sizes}, and the tokenizer of {whose} has {max(known)} tokens: rows that stand for tokens differ, not "
            "only padding",
            "a vector cannot add tokens to its base or take them away: make a base that has them "
            "(`model.resize_token_embeddings`, `save_pretrained`), `persona init` on it, and fine-tune that",
        )
    return common


def token_count(folder: Path) -> int | None:
    """One more than the highest token id of a folder's tokenizer.json; None where there is none that can be read."""
    try:
        found = json.loads((folder / "tokenizer.json").read_bytes())
        vocabulary = found["model"]["vocab"]
        # A table of ids, or for Unigram a list of pieces in the order of their ids.
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return 1 + max((*ids, *(token["id"] for token in found.get("added_tokens", ()))), default=-1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
