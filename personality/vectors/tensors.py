"""Between bytes on disk and torch tensors, without a copy where possible."""

from __future__ import annotations

import torch

from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorFile, TensorSpec
from personality.vectors.dtypes import TORCH_DTYPES


def read_tensor(file: TensorFile, name: str) -> torch.Tensor:
    """A tensor of a safetensors file, memory-mapped: pages are read when touched and belong to the page cache.

    Raises:
        IncompatibleError: for a dtype that torch cannot hold.
    """
    spec = file.specs[name]
    if spec.dtype not in TORCH_DTYPES:
        raise IncompatibleError(f"tensor `{name}` of {file.path} has the dtype {spec.dtype}, which is not supported")
    dtype = TORCH_DTYPES[spec.dtype]
    if spec.elements == 0:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(file.bytes_of(name), dtype=dtype).reshape(spec.shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's bytes, little-endian, not copied."""
    if not tensor.numel():  # an empty one may have a stride that cannot be viewed as bytes
        return memoryview(b"")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy arrays are buffers


def row_blocks(spec: TensorSpec, block_elements: int) -> list[tuple[int, int]]:
    """Ranges of rows that together cover a tensor seen as a matrix; each has about `block_elements` elements.

    A tensor of shape (a, ..., c) is seen as a matrix of (a·…) rows and c columns; 0-D and 1-D tensors as one column.
    """
    rows, columns = matrix_shape(spec.shape)
    step = max(1, block_elements // max(1, columns))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix, as in `row_blocks`."""
    if len(shape) < 2:
        return (shape[0] if shape else 1), 1
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows, shape[-1]
