"""Which layer of the model a tensor belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable

# `model.layers.3.`, `transformer.h.3.`, `gpt_neox.layers.3.`, `model.language_model.layers.3.`
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_NOT_LANGUAGE = re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model|audio_tower|mtp)\.")


def layer_of(name: str) -> int | None:
    """The layer's number; None for embeddings, final norm, output head and towers beside the language model."""
    if _NOT_LANGUAGE.search(name):
        return None
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def layer_count(names: Iterable[str]) -> int:
    """Number of layers among these tensors."""
    return 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=-1)
