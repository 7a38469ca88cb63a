"""The `delta` encoding: a dense difference per tensor, each in bfloat16 or float32."""

from __future__ import annotations

from typing import Any

import torch

from personality.manifests.tensor_file import TensorFile, TensorSpec
from personality.vectors.tensors import matrix_shape, read_tensor

ENCODING = "delta"


def header() -> dict[str, Any]:
    """What a file of this encoding says of itself."""
    return {"kind": "task", "encoding": ENCODING}


class DeltaVector:
    """A task vector that stores W_tuned − W_base for every tensor that it changes.

    Args:
        file: tensors named like the base's.

    Attributes:
        shapes: shape of each base tensor that it changes.
        path: the file.
    """

    def __init__(self, file: TensorFile, header: dict[str, Any]) -> None:
        self._file = file
        self.path = file.path
        self.shapes: dict[str, tuple[int, ...]] = {name: spec.shape for name, spec in file.specs.items()}
        self.specs: dict[str, TensorSpec] = dict(file.specs)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor seen as a matrix (rows, columns), memory-mapped, in the stored dtype."""
        tensor = read_tensor(self._file, name)
        return tensor.reshape(matrix_shape(self.shapes[name]))[start:stop]
