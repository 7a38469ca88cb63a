"""Which of a vector's tensors a use with a layer range changes."""

from __future__ import annotations

from collections.abc import Iterable

from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Use
from personality.vectors.layers import layer_count, layer_of


def layered_names(use: Use, changed: Iterable[str], base: Iterable[str]) -> list[str]:
    """The tensors that a use changes.

    Args:
        use: with or without a layer range.
        changed: names of the tensors that its vector changes.
        base: names of all tensors of the base.

    Raises:
        IncompatibleError: when the range lies outside the model, or nothing lies in it.
    """
    names = list(changed)
    if use.layers is None:
        return names
    layers = layer_count(base)
    if use.layers.last >= layers:
        raise IncompatibleError(
            f"`{use.label}` is to act in layers {use.layers}, the base has layers 0-{layers - 1}",
            f"choose layers within 0-{layers - 1}: `persona add {use.label} --layers A-B`",
        )
    inside = [name for name in names if (layer := layer_of(name)) is not None and layer in use.layers]
    if not inside:
        raise IncompatibleError(
            f"`{use.label}` changes nothing in layers {use.layers}",
            f"`persona show {use.label} --json` lists the tensors that it changes",
        )
    return inside
