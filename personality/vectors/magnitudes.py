"""How large a vector's elements are: a histogram of their magnitudes for each tensor, counted once and kept beside it.

Positive IEEE floats order like their bit patterns, so a magnitude is counted by its float32 pattern. The difference of
two bfloat16 checkpoints has few patterns, most of them bfloat16s themselves (whose lower 16 bits are 0): each is
counted, and the k-th largest can be read off exactly. A tensor with too many, as float32 training leaves one, is
counted by the upper 16 bits alone, 32768 bins; that says among which neighbors the k-th largest lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from personality.manifests.atomic import writing
from personality.manifests.canonical import digest_bytes
from personality.manifests.errors import PersonaError
from personality.manifests.tensor_file import TensorFile, TensorSpec, TensorWriter
from personality.manifests.vector_store import FORMAT, read_header
from personality.vectors.tensors import read_tensor, tensor_bytes

BINS = 1 << 15
LOWER_BITS = 0xFFFF

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where the k-th largest magnitude lies.

    Attributes:
        pattern: its float32 bits; unless `exact`, those of the lowest in its bin.
        above: how many elements are counted by higher patterns.
        exact: whether the pattern is the magnitude's own.
    """

    pattern: int
    above: int
    exact: bool


@dataclass(frozen=True)
class Counted:
    """One tensor's histogram: patterns in rising order, how many elements each has, whether they are exact."""

    patterns: Integers
    counts: Integers
    exact: bool


class Magnitudes:
    """The histograms of a vector's tensors.

    Args:
        counted: by name of the base tensor.
    """

    def __init__(self, counted: Mapping[str, Counted]) -> None:
        self._counted = dict(counted)

    def kth_largest(self, names: Sequence[str], k: int) -> Place:
        """The k-th largest magnitude of some tensors together.

        Args:
            names: of the base tensors; not none.
            k: from 1.

        Raises:
            ValueError: when there are fewer than k elements.
        """
        found = [self._counted[name] for name in names]
        if len(found) == 1:
            index, above = find_from_top(found[0].counts, k)
            return Place(int(found[0].patterns[index]), above, found[0].exact)
        # Two steps: patterns of all tensors together would have to be sorted.
        upper = np.zeros(BINS, dtype=np.int64)
        for item in found:
            np.add.at(upper, item.patterns >> 16, item.counts)
        bin_, above = find_from_top(upper, k)
        if not all(item.exact for item in found):
            return Place(bin_ << 16, above, exact=False)
        lower = np.zeros(LOWER_BITS + 1, dtype=np.int64)
        for item in found:
            first, last = np.searchsorted(item.patterns, [bin_ << 16, (bin_ + 1) << 16])
            np.add.at(lower, item.patterns[first:last] & LOWER_BITS, item.counts[first:last])
        low, more = find_from_top(lower, k - above)
        return Place(bin_ << 16 | low, above + more, exact=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Magnitudes) or self._counted.keys() != other._counted.keys():
            return False
        return all(
            a.exact == b.exact and np.array_equal(a.patterns, b.patterns) and np.array_equal(a.counts, b.counts)
            for a, b in ((entry, other._counted[name]) for name, entry in self._counted.items())
        )

    __hash__ = None  # type: ignore[assignment]  # compared by content

    def save(self, path: Path) -> None:
        """Write them as a safetensors file.

        Raises:
            PersonaError: when it cannot be written.
        """
        entries = list(self._counted.values())
        nothing = np.zeros(0, dtype=np.int64)
        arrays: dict[str, tuple[str, NDArray[np.generic]]] = {
            "counts": ("I64", np.concatenate([nothing, *(entry.counts for entry in entries)])),
            "starts": ("I64", np.cumsum([0, *(len(entry.counts) for entry in entries)], dtype=np.int64)),
            "patterns": ("I32", np.concatenate([nothing, *(entry.patterns for entry in entries)]).astype(np.int32)),
            "exact": ("BOOL", np.array([entry.exact for entry in entries], dtype=np.bool_)),
        }
        specs = [TensorSpec(name, dtype, array.shape) for name, (dtype, array) in arrays.items()]
        parts = {name: tensor_bytes(torch.from_numpy(array)) for name, (_, array) in arrays.items()}
        header = {
            "format": FORMAT,
            "kind": "magnitudes",
            "vector": path.stem,
            "tensors": list(self._counted),
            "digests": {name: digest_bytes(part) for name, part in parts.items()},
        }
        with writing(path, mode=0o444) as file:
            writer = TensorWriter(file, specs, header)
            for name, part in parts.items():
                writer.write_blocks(name, [part])
            writer.finish()

    @classmethod
    def load(cls, path: Path, elements: Mapping[str, int]) -> Magnitudes | None:
        """Read them.

        Args:
            path: the file.
            elements: of each of the vector's tensors, by name.

        Returns:
            None when the file is not there, was damaged, or cannot be that of such a vector.
        """
        try:
            file = TensorFile(path)
            header = read_header(file, "the magnitudes")
            if header.get("vector") != path.stem or header.get("tensors") != list(elements):
                return None
            if header.get("digests") != {name: file.digest_of(name) for name in file.specs}:
                return None
            if {name: (spec.dtype, len(spec.shape)) for name, spec in file.specs.items()} != _ARRAYS:
                return None
            counts, starts, patterns, exact = (read_tensor(file, name).numpy() for name in _ARRAYS)
        except (PersonaError, OSError):
            return None
        if not _is_whole(counts, starts, patterns, exact, list(elements.values())):
            return None
        places = starts.tolist()  # copies from here on: a mapped file that is cut short ends the process
        return cls(
            {
                name: Counted(
                    patterns[places[i] : places[i + 1]].astype(np.int64),
                    counts[places[i] : places[i + 1]].copy(),
                    bool(exact[i]),
                )
                for i, name in enumerate(elements)
            }
        )


_ARRAYS = {"counts": ("I64", 1), "starts": ("I64", 1), "patterns": ("I32", 1), "exact": ("BOOL", 1)}


def _is_whole(
    counts: Integers, starts: Integers, patterns: NDArray[np.int32], exact: NDArray[np.bool_], elements: list[int]
) -> bool:
    """Whether arrays say of every tensor which rising patterns have how many of so many elements."""
    tensors = len(elements)
    if len(starts) != tensors + 1 or len(exact) != tensors or len(patterns) != len(counts):
        return False
    if starts[0] != 0 or starts[-1] != len(counts) or (np.diff(starts) < 0).any():
        return False
    if (counts <= 0).any() or (patterns < 0).any():
        return False
    of_tensor = np.repeat(np.arange(tensors), np.diff(starts))
    same_tensor = np.diff(of_tensor) == 0
    if (np.diff(patterns.astype(np.int64)) <= 0)[same_tensor].any() or (patterns[~exact[of_tensor]] & LOWER_BITS).any():
        return False
    summed = np.zeros(tensors, dtype=np.int64)
    np.add.at(summed, of_tensor, counts)
    return summed.tolist() == elements


def find_from_top(counts: Integers, k: int) -> tuple[int, int]:
    """The index that the k-th falls into, counted from the last, and how many lie behind it.

    Raises:
        ValueError: when there are fewer than k.
    """
    from_top = counts[::-1].cumsum()
    place = int(np.searchsorted(from_top, k))
    if place == len(counts):
        raise ValueError(f"there are only {int(from_top[-1]) if len(from_top) else 0} elements, not {k}")
    return len(counts) - 1 - place, int(from_top[place] - counts[len(counts) - 1 - place])
