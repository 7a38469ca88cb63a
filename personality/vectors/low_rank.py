"""The `low-rank` encoding: two factors per tensor, ΔW = scaling · B A (LoRA, arXiv 2106.09685, section 4.1).

What has no factors (norms, biases, stacked experts, matrices that factors would not make smaller) is carried dense in
the same file, under its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from personality.manifests.errors import CorruptError
from personality.manifests.tensor_file import TensorFile, TensorSpec
from personality.vectors.tensors import matrix_shape, read_tensor

ENCODING = "low-rank"
SUFFIX_A = ".lora_A"
SUFFIX_B = ".lora_B"
_BLOCK_ELEMENTS = 1 << 18
"""Elements multiplied at a time: the running sum stays in the processor's cache."""


def header(scaling: dict[str, float], transposed: list[str], dense: Sequence[str] = ()) -> dict[str, Any]:
    """What a file of this encoding says of itself.

    Args:
        scaling: factor per base tensor.
        transposed: base tensors that are stored (in, out) instead of (out, in), as GPT-2's Conv1D does.
        dense: base tensors that are carried dense.
    """
    found = {"kind": "task", "encoding": ENCODING, "scaling": scaling, "transposed": sorted(transposed)}
    return {**found, "dense": sorted(dense)} if dense else found


class LowRankVector:
    """A task vector kept as factors: A (rank, in) and B (out, rank) for each tensor that it changes; A (n, rank, in)
    and B (n, out, rank) for a stack of n matrices, such as the experts of a layer.

    Args:
        file: tensors `<base tensor>.lora_A` and `<base tensor>.lora_B`; named like the base's where carried dense.
        header: holds `scaling` and `transposed`, and `dense` where some are.

    Attributes:
        shapes: shape of each base tensor that it changes.
        path: the file.

    Raises:
        CorruptError: when a factor is missing, or the two do not fit together.
    """

    def __init__(self, file: TensorFile, header: dict[str, Any]) -> None:
        self._file = file
        self.path = file.path
        self._scaling: dict[str, float] = header.get("scaling", {})
        self._transposed = set(header.get("transposed", []))
        self.specs: dict[str, TensorSpec] = dict(file.specs)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in self._scaling:
            a, b = file.specs.get(name + SUFFIX_A), file.specs.get(name + SUFFIX_B)
            if a is None or b is None or not _fit(a.shape, b.shape):
                raise CorruptError(f"{file.path}: the factors of `{name}` do not fit: A {a}, B {b}")
            *stack, outer, _ = b.shape
            ends = (a.shape[-1], outer) if name in self._transposed else (outer, a.shape[-1])
            self.shapes[name] = (*stack, *ends)
        self._dense = set(header.get("dense", []))
        for name in self._dense:
            spec = file.specs.get(name)
            if spec is None or name in self.shapes:
                raise CorruptError(f"{file.path}: `{name}` is said to be dense, which it is not")
            self.shapes[name] = spec.shape
        factors = len(file.specs) - len(self._dense)
        if factors != 2 * len(self._scaling):
            raise CorruptError(f"{file.path} has {factors} factors for {len(self._scaling)} tensors")

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of scaling · B A, shape (stop − start, columns), float32; where carried dense, in the
        stored dtype.
        """
        if name in self._dense:
            return read_tensor(self._file, name).reshape(matrix_shape(self.shapes[name]))[start:stop]
        if len(self.shapes[name]) == 2:
            left, right = self.factors(name)
            return _product(left[start:stop], right).mul_(self._scaling[name])
        height = self.shapes[name][-2]
        blocks = []
        for place in range(start // height, -(-stop // height)):
            left, right = self.factors(name, place)
            first = place * height
            blocks.append(_product(left[max(0, start - first) : stop - first], right))
        return torch.cat(blocks).mul_(self._scaling[name])

    def has_factors(self, name: str) -> bool:
        """Whether the change of one of its tensors is one product of two factors: neither dense nor a stack of them."""
        return name in self._scaling and len(self.shapes[name]) == 2

    def scaling(self, name: str) -> float:
        """What the product of the two factors is multiplied with."""
        return self._scaling[name]

    def factors(self, name: str, place: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Left (rows, rank) and right (rank, columns), float32, of one matrix, without the scaling.

        Args:
            name: of the tensor.
            place: which of its matrices, for a stack of them.
        """
        a, b = (read_tensor(self._file, name + suffix) for suffix in (SUFFIX_A, SUFFIX_B))
        if a.dim() == 3:
            a, b = a[place], b[place]
        a, b = a.float(), b.float()
        return (a.T, b.T) if name in self._transposed else (b, a)


def _fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether (…, rank, in) and (…, out, rank) can be multiplied, one matrix each or a stack of as many."""
    return len(a) == len(b) and len(a) in (2, 3) and a[:-2] == b[:-2] and a[-2] == b[-1]


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Left @ right, summed in order of rank.

    A matrix multiplication of the library's picks another order of summation for another number of rows or threads,
    so that the same element would get other last bits in another block; elementwise operations cannot.

    Args:
        left: (rows, rank), float32.
        right: (rank, columns), float32.

    Returns:
        (rows, columns), float32.
    """
    columns_of_left, right = left.T.contiguous(), right.contiguous()
    rank, columns = right.shape
    total = torch.zeros(left.shape[0], columns)
    step = max(1, _BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, left.shape[0], step):
        block = total[start : start + step]
        for k in range(rank):
            block += columns_of_left[k, start : start + step, None] * right[k]
    return total
