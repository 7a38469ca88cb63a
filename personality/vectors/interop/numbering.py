"""Which layer a tensor of a file belongs to, where the file follows no one format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from personality.manifests.errors import IncompatibleError, UsageError
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.imported_directions import ImportedDirections, Source, checked

_KEY = re.compile(r"(?P<name>(?:.*[^0-9])?)(?P<number>[0-9]{1,6})")
_WAYS = "keep one tensor per layer, named `layer.0`, `layer.1`, …, or one stacked tensor [layers, width]"


@dataclass(frozen=True)
class Numbered:
    """Tensors by layer.

    Attributes:
        tensors: as they are in the file; layer l means the output of decoder block l.
        hidden_states: whether the file counts as transformers' `hidden_states` do: the embeddings' output is 0, and the
            output of block l is l + 1.
    """

    tensors: dict[int, Tensor]
    hidden_states: bool = False


def directions(content: Any, base: BaseShape, where: str, layer: int | None, source: Source) -> ImportedDirections:
    """Directions of a file that follows no one format; arguments and errors as `numbered` and `checked`.

    What counts as `hidden_states` do is taken for persona_vectors' (see `torch_file`), whatever the file.
    """
    found = numbered(content, base, where, layer)
    if not found.hidden_states:
        return checked(found.tensors, base, where, source)
    notes = (
        f"{base.layers + 1} directions for {base.layers} layers: the first, of the embeddings' output, is left out; "
        "number l + 1 is of layer l",
        f"transformers gives the last one, here of layer {base.layers - 1}, after the final norm: in that layer its "
        "strength may not fit",
    )
    return checked(found.tensors, base, where, "persona-vectors", positions="response", together=False, notes=notes)


def numbered(content: Any, base: BaseShape, where: str, layer: int | None) -> Numbered:
    """Find the layers of what a file holds.

    - One tensor (n, d), or a list of n tensors (d,): with n = L + 1 it counts as `hidden_states` do, row 0 being the
      embeddings' output and row l + 1 that of block l; with n = L, row l is the output of block l. Any other n is
      refused: it could mean several things.
    - A table of tensors (d,) whose keys are numbers, or one name followed by a number (`3`, `layer.3`, `layers_3`):
      number l is the output of block l, unless the numbers are exactly 0 to L, which is how `hidden_states` counts.
    - A single tensor (d,) belongs to the layer that the caller names.

    Args:
        content: a tensor, a list or a table of tensors.
        base: gives L and d.
        where: the file, for errors.
        layer: for a single direction without a number.

    Raises:
        IncompatibleError: for anything else.
        UsageError: for a single direction when no layer was named.
    """
    if isinstance(content, Tensor):
        return _tensor(content, base, where, layer)
    if isinstance(content, Mapping):
        return _table(content, base, where, layer)
    if isinstance(content, Sequence) and not isinstance(content, str | bytes) and content:
        if all(isinstance(item, Tensor) and item.shape == content[0].shape for item in content):
            if content[0].numel() != base.width or len(content) not in (1, base.layers, base.layers + 1):
                raise _misfit([len(content), *content[0].shape], base, where)  # before they are copied together
            return _tensor(torch.stack(list(content)), base, where, layer)
        raise IncompatibleError(f"{where} holds a list of other things than tensors of one shape", _WAYS)
    what = "nothing" if isinstance(content, Sequence) and not content else f"a `{type(content).__name__}`"
    raise IncompatibleError(f"{where} holds {what} and no directions", _WAYS)


def _tensor(content: Tensor, base: BaseShape, where: str, layer: int | None) -> Numbered:
    shape = list(content.shape)
    if content.numel() == base.width and content.shape[-1:] == (base.width,):
        if layer is None:
            raise UsageError(f"{where} holds one direction and does not say of which layer", "name it: `--layers 7`")
        return Numbered({layer: content.reshape(-1)})
    if content.ndim == 3 and content.shape[1] == 1:
        content = content[:, 0]
    if content.ndim != 2 or content.shape[0] not in (base.layers, base.layers + 1) or content.shape[1] != base.width:
        raise _misfit(shape, base, where)
    return _counted(dict(enumerate(content)), base)


def _misfit(shape: list[int], base: BaseShape, where: str) -> IncompatibleError:
    return IncompatibleError(
        f"{where} holds a tensor of the shape {shape}, the base has {base}: expected "
        f"[{base.layers}, {base.width}] or, with the embeddings' output first, [{base.layers + 1}, {base.width}]",
        "it was made for another base, or is no stack of directions",
    )


def _table(content: Mapping[Any, Any], base: BaseShape, where: str, layer: int | None) -> Numbered:
    if len(content) == 1:
        ((key, only),) = content.items()
        if isinstance(only, Tensor) and _number(key) is None:
            return _tensor(only, base, where, layer)
    found: dict[int, Tensor] = {}
    names = set()
    for key, value in content.items():
        place = _number(key)
        if place is None or not isinstance(value, Tensor):
            what = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a `{type(value).__name__}`"
            raise IncompatibleError(
                f"{where} has {what} named `{key}`, which names no layer",
                f"{_WAYS}; a fine-tuned model is imported by the folder that it lies in",
            )
        name, number = place
        if number in found:
            raise IncompatibleError(f"{where} has several tensors for layer {number}", _WAYS)
        names.add(name)
        found[number] = value
    if len(names) > 1:
        raise IncompatibleError(
            f"{where} has tensors of several kinds: {', '.join(f'`{name}…`' for name in sorted(names)[:4])}",
            "keep one direction per layer; a fine-tuned model is imported by the folder that it lies in",
        )
    return _counted(found, base)


def _number(key: Any) -> tuple[str, int] | None:
    """The name before the number, and the number; None when the key does not end in one."""
    if isinstance(key, int) and not isinstance(key, bool) and key >= 0:
        return "", key
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    return (match["name"], int(match["number"])) if match else None


def _counted(found: dict[int, Tensor], base: BaseShape) -> Numbered:
    if found.keys() == set(range(base.layers + 1)):
        return Numbered({number - 1: tensor for number, tensor in found.items() if number > 0}, hidden_states=True)
    return Numbered(found)
