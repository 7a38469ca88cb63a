"""Embeddings and output head where both are one tensor: what an adapter's changes of them come to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.vectors.adapter_content import MERGE, Pair
from personality.vectors.base import model_config
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.parameter_names import ParameterNames

EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
HEAD = "lm_head.weight"
"""Endings of their names."""


def is_tied(base: Checkpoint) -> bool:
    """Whether embeddings and output head are one tensor when the model is loaded.

    Configurations leave the field out where it has their class's default; then the weights tell: a model that ties has
    no head of its own in its files, or one that repeats the embeddings.
    """
    config = model_config(base.folder)
    for part in (config, config.get("text_config") or {}):
        if "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    return any(name.endswith(EMBEDDINGS) for name in base.specs) and len(_contents(base)) == 1


def _contents(base: Checkpoint) -> set[str]:
    """Digests of all embeddings and output heads."""
    return {base.digest_of(name) for name in base.specs if name.endswith((*EMBEDDINGS, HEAD))}


def absent_head(base: Checkpoint, view: ParameterNames) -> dict[str, str]:
    """The output head of a tied model, which its files do not hold, with the embeddings that it is."""
    tables = [names[0] for parameter, names in view.tensors.items() if parameter.endswith("embed_tokens.weight")]
    absent = HEAD not in view.tensors
    return {HEAD: tables[0]} if absent and len(tables) == 1 and is_tied(base) else {}


def tied_changes(pairs: list[Pair], saved: Iterable[str], base: Checkpoint) -> tuple[list[Pair], list[str]]:
    """What changes of embeddings or of the output head do to a model in which both are one tensor, and a note."""
    names = [name for name in base.specs if name.endswith((*EMBEDDINGS, HEAD))]
    changed = [pair for pair in pairs if pair.target in names]
    whole = [name for name in saved if name in names]
    if not (changed or whole) or not is_tied(base) or len(_contents(base)) > 1:
        return pairs, []
    if whole:
        raise IncompatibleError(
            f"the adapter holds a new `{whole[0]}`, and in the base embeddings and output head are one tensor",
            MERGE,
        )
    first, *others = changed
    if not all(_same_change(first, other) for other in others):
        raise IncompatibleError(
            f"the adapter changes embeddings and output head in two ways, in the base they are one tensor, "
            f"`{first.target}`",
            "train it with `ensure_weight_tying=True`, or with one of the two as its target",
        )
    kept = [pair for pair in pairs if pair not in changed] + [replace(first, target=name) for name in names]
    alike = "as the adapter does" if others else "as PEFT's merge does; unmerged, the adapter acts in one of them only"
    return kept, [f"embeddings and output head are one tensor, `{names[0]}`: the change acts in both, {alike}"]


def _same_change(first: Pair, second: Pair) -> bool:
    return not (first.magnitude or second.magnitude) and torch.equal(_product(first), _product(second))


def _product(pair: Pair) -> Tensor:
    """What a pair of two matrices adds to its tensor."""
    change = pair.scaling * (pair.b.float() @ pair.a.float())
    return change.T if pair.transposed else change
