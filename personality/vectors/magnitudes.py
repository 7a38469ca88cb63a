"""How large a vector's elements are: a histogram of their magnitudes for each tensor, counted once and kept beside it.

A magnitude is counted by the upper 16 bits of its float32 pattern (with the sign 0, so 32768 bins): positive IEEE
floats order like their bit patterns, and a bfloat16 is nothing but those upper bits, so for bfloat16 values the
histogram says exactly what the k-th largest is. For float32 values it says in which bin of 65536 neighbors that lies.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from personality.manifests.atomic import writing
from personality.manifests.errors import CorruptError, PersonaError
from personality.manifests.tensor_file import TensorFile, TensorSpec, TensorWriter
from personality.manifests.vector_store import FORMAT, MAGNITUDES_SUFFIX, read_header
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import read_tensor, row_blocks, tensor_bytes

BINS = 1 << 15
_BLOCK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class _Counted:
    """One tensor's histogram: bins that are not empty (int16), what is in each (int64); whether all are bfloat16s."""

    bins: Tensor
    counts: Tensor
    exact: bool


class Magnitudes:
    """The histograms of a vector's tensors.

    Args:
        counted: by name of the base tensor.
    """

    def __init__(self, counted: Mapping[str, _Counted]) -> None:
        self._counted = dict(counted)

    def histogram(self, names: Iterable[str]) -> Tensor:
        """How many elements of these tensors together fall into each bin, (32768,) int64."""
        total = torch.zeros(BINS, dtype=torch.int64)
        for name in names:
            found = self._counted[name]
            total.index_add_(0, found.bins.to(torch.int64), found.counts)
        return total

    def exact(self, names: Iterable[str]) -> bool:
        """Whether all elements of these tensors are bfloat16 values: then a bin is one magnitude."""
        return all(self._counted[name].exact for name in names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Magnitudes) or self._counted.keys() != other._counted.keys():
            return False
        return all(
            a.exact == b.exact and torch.equal(a.bins, b.bins) and torch.equal(a.counts, b.counts)
            for a, b in ((entry, other._counted[name]) for name, entry in self._counted.items())
        )

    __hash__ = None  # type: ignore[assignment]  # compared by content

    def save(self, path: Path) -> None:
        """Write them as a safetensors file.

        Raises:
            PersonaError: when it cannot be written.
        """
        entries = list(self._counted.values())
        sizes = torch.tensor([0, *(len(entry.bins) for entry in entries)], dtype=torch.int64)
        tensors = {
            "counts": torch.cat([torch.zeros(0, dtype=torch.int64), *(entry.counts for entry in entries)]),
            "starts": sizes.cumsum(0),
            "bins": torch.cat([torch.zeros(0, dtype=torch.int16), *(entry.bins for entry in entries)]),
            "exact": torch.tensor([entry.exact for entry in entries], dtype=torch.bool),
        }
        kinds = {"counts": "I64", "starts": "I64", "bins": "I16", "exact": "BOOL"}
        specs = [TensorSpec(name, kinds[name], tuple(tensor.shape)) for name, tensor in tensors.items()]
        header = {"format": FORMAT, "kind": "magnitudes", "vector": path.stem, "tensors": list(self._counted)}
        with writing(path, mode=0o444) as file:
            writer = TensorWriter(file, specs, header)
            for name, tensor in tensors.items():
                writer.write(name, tensor_bytes(tensor))
            writer.finish()

    @classmethod
    def load(cls, path: Path, elements: Mapping[str, int]) -> Magnitudes | None:
        """Read them; None when they are not there, or cannot be those of a vector with so many elements per tensor."""
        try:
            file = TensorFile(path)
            header = read_header(file, "the magnitudes")
            if header.get("vector") != path.stem or header.get("tensors") != list(elements):
                return None
            counts, starts, bins, exact = (
                read_tensor(file, name).clone() for name in ("counts", "starts", "bins", "exact")
            )
        except (PersonaError, KeyError):
            return None
        places, flags = starts.tolist(), exact.tolist()
        counted = {
            name: _Counted(bins[places[i] : places[i + 1]], counts[places[i] : places[i + 1]], flags[i])
            for i, name in enumerate(elements)
        }
        whole = all(int(entry.counts.sum()) == elements[name] for name, entry in counted.items())
        return cls(counted) if whole else None


class MagnitudeCounter:
    """Counts a vector's magnitudes: one tensor after another, block by block."""

    def __init__(self) -> None:
        self._done: dict[str, _Counted] = {}
        self._current = ""

    def begin(self, name: str) -> None:
        """What is added from here on belongs to this tensor."""
        self._finish()
        self._current, self._exact = name, True
        self._total = torch.zeros(BINS, dtype=torch.int64)

    def add(self, block: Tensor) -> None:
        """Count a block, any float dtype and shape."""
        upper, lower = magnitude_bits(block)
        self._total += torch.bincount(upper, minlength=BINS)
        self._exact = self._exact and (lower is None or not bool(lower.any()))

    def result(self) -> Magnitudes:
        """What was counted."""
        self._finish()
        return Magnitudes(self._done)

    def _finish(self) -> None:
        if self._current:
            bins = self._total.nonzero().reshape(-1)
            self._done[self._current] = _Counted(bins.to(torch.int16), self._total[bins], self._exact)


def magnitude_bits(block: Tensor) -> tuple[Tensor, Tensor | None]:
    """The upper 16 bits of each float32 magnitude as integers, flat, and the lower 16; None where they are all zero."""
    flat = block.detach().reshape(-1)
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16) & 0x7FFF, None
    bits = flat.float().abs().view(torch.int32)
    return bits >> 16, bits & 0xFFFF


def magnitudes_of(vector: TaskVector) -> Magnitudes:
    """A stored vector's magnitudes: those kept beside it, or else counted now, and kept where that is possible."""
    path = vector.path.with_suffix(MAGNITUDES_SUFFIX)
    found = Magnitudes.load(path, _elements(vector))
    if found is None:
        found = count_magnitudes(vector)
        keep_magnitudes(vector, found)
    return found


def keep_magnitudes(vector: TaskVector, magnitudes: Magnitudes) -> None:
    """Keep a vector's magnitudes beside it, where that is possible: without them they are counted again."""
    with contextlib.suppress(PersonaError):
        magnitudes.save(vector.path.with_suffix(MAGNITUDES_SUFFIX))


def check_magnitudes(vector: TaskVector, label: str) -> None:
    """Count again, and compare with what is kept beside a vector.

    Raises:
        CorruptError: when that says something else.
    """
    path = vector.path.with_suffix(MAGNITUDES_SUFFIX)
    if path.exists() and Magnitudes.load(path, _elements(vector)) != count_magnitudes(vector):
        raise CorruptError(f"{path} is not the histogram of `{label}`", "remove that file: it is counted again")


def _elements(vector: TaskVector) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in vector.shapes.items()}


def count_magnitudes(vector: TaskVector) -> Magnitudes:
    """Read a whole vector and count."""
    counter = MagnitudeCounter()
    for name, shape in vector.shapes.items():
        counter.begin(name)
        for start, stop in row_blocks(TensorSpec(name, "F32", shape), _BLOCK_ELEMENTS):
            counter.add(vector.rows(name, start, stop))
    return counter.result()
