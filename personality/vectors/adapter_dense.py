"""What a PEFT adapter changes otherwise than by a product of two factors, as dense differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from personality.manifests.tensor_file import TensorFile
from personality.vectors.adapter_content import AdapterContent, Pair
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import compute_dtype
from personality.vectors.tensors import read_tensor


@dataclass(frozen=True)
class DenseChange:
    """The change of one tensor.

    Attributes:
        dtype: to store it in, safetensors' name.
        make: computes it, in the base's compute dtype and shape.
    """

    dtype: str
    make: Callable[[], Tensor]


def dense_changes(base: Checkpoint, file: TensorFile, content: AdapterContent) -> dict[str, DenseChange]:
    """The dense changes by tensor of the base; one tensor in memory at a time.

    A trained copy (`modules_to_save`, biases) is stored in bfloat16 where that is exact and else in float32; what DoRA
    makes of a 16-bit base in bfloat16, which costs at most 2⁻⁹ of the change in each element.
    """
    found = {}
    for target, name in content.saved.items():
        change = _replacement(base, target, file, name)
        if bool(change.any()):
            exact = bool((change.to(torch.bfloat16).to(change.dtype) == change).all())
            make = _later(_replacement, base, target, file, name)
            found[target] = DenseChange("BF16" if exact else "F32", make)
    for pair in content.pairs:
        if pair.magnitude:
            short = base.specs[pair.target].dtype in ("BF16", "F16")
            found[pair.target] = DenseChange("BF16" if short else "F32", _later(_dora, base, pair, file))
    return found


def _later(function: Callable[..., Tensor], *arguments: object) -> Callable[[], Tensor]:
    return lambda: function(*arguments)


def _replacement(base: Checkpoint, target: str, file: TensorFile, name: str) -> Tensor:
    """What a trained copy of a tensor differs by from the base's."""
    dtype = compute_dtype(base.specs[target].dtype)
    return read_tensor(file, name).to(dtype) - base.tensor(target).to(dtype)


def _dora(base: Checkpoint, pair: Pair, file: TensorFile) -> Tensor:
    """The change m / ‖V‖ · V − W with V = W + scaling · B A, the norm over what enters an output (DoRA, Liu et
    al. 2024, arXiv 2402.09353, equation 5).
    """
    dtype = compute_dtype(base.specs[pair.target].dtype)
    weights = base.tensor(pair.target).to(dtype)
    product = pair.scaling * (pair.b.to(dtype) @ pair.a.to(dtype))
    directions = weights + (product.T if pair.transposed else product)
    entering = 0 if pair.transposed else 1
    norms = torch.linalg.norm(directions, dim=entering, keepdim=True)
    magnitudes = read_tensor(file, pair.magnitude).to(dtype).reshape(norms.shape)
    change: Tensor = magnitudes / norms * directions - weights
    return change
