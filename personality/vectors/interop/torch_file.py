"""Directions in files of `torch.save`, above all persona_vectors' (arXiv 2507.21509).

That project saves one tensor (L + 1, d), the mean differences of `hidden_states`: row 0 is of the embeddings' output,
row l + 1 of the output of block l. It acts in one layer at a time, at the last token of the prompt and at every token
of the reply: its `layer=n` is our layer n − 1.

A pickle can run any program when it is opened. Only tensors, numbers and texts in lists and tables are opened here
(`weights_only`); everything else is refused unopened.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality.manifests.atomic import writing
from personality.manifests.errors import CorruptError, IncompatibleError
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.imported_directions import ImportedDirections
from personality.vectors.interop.numbering import directions

_MOST_UNMAPPED = 1 << 30
"""Bytes. A view saved before torch 1.6 took its whole storage along, so such files can be larger than they look."""


def read_torch(path: Path, base: BaseShape, layer: int | None = None) -> ImportedDirections:
    """Read directions that `torch.save` wrote.

    Args:
        path: the file.
        base: what it has to fit.
        layer: the layer of a single direction without a number.

    Raises:
        CorruptError: when the file is cut off or damaged.
        IncompatibleError: when opening it would run a program, or it holds no directions of this base; see `numbered`
            and `checked`.
        UsageError: for a single direction when no layer was named.
    """
    return directions(_load(path), base, str(path), layer, "torch")


def _load(path: Path) -> Any:
    # Mapped, tensors that are refused by their names or shapes are never read; the old format has to be read whole.
    mapped = zipfile.is_zipfile(path)
    size = path.stat().st_size
    if not mapped and size > _MOST_UNMAPPED:
        raise IncompatibleError(
            f"{path} has {size / 1e9:.2f} GB, in a format that can only be read whole; directions are far smaller",
            "a fine-tuned model is imported by the folder that it lies in; save directions alone: "
            "`torch.save(tensor.clone(), FILE)`",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused anyway
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged files end in errors of many kinds
        what = (str(error).splitlines() or [""])[0] or "it ends early"
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            raise IncompatibleError(
                f"{path} holds Python objects other than tensors: to open it could run a program, so it was not opened",
                "where it was made, save the tensor alone: `torch.save(tensor, FILE)`",
            ) from error
        raise CorruptError(
            f"{path} is not a whole file of `torch.save`: {what}",
            "fetch or make the file again",
        ) from error


def write_persona_vectors(path: Path, directions: Mapping[int, Tensor], base: BaseShape) -> None:
    """Write a tensor (L + 1, d) as persona_vectors saves it; rows without a direction are zero.

    Args:
        path: the file; replaced when it exists.
        directions: (d,) by layer, in the strength that coefficient 1 adds when that layer is the only one.
        base: gives L and d.

    Raises:
        PersonaError: when it cannot be written.
    """
    rows = torch.zeros(base.layers + 1, base.width)
    for layer, tensor in directions.items():
        rows[layer + 1] = tensor.detach().cpu().float()
    with writing(path) as file:
        torch.save(rows, file)
