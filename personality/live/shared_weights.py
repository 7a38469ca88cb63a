"""Weights in memory that two processes share: one writes them in place, the other reads them meanwhile, without locks.

The layout of HOGWILD! (Recht et al. 2011, arXiv 1106.5730) with one writer and one reader, and with counters after the
manner of a seqlock, so that a reader can tell afterwards whether what it read belonged together:

    8 bytes   mark
    8 bytes   length of the header, little-endian
    header    JSON: name, dtype, shape and place of every tensor, and which of them change
    64-aligned: 2 flags, then two counters for each changing tensor: `begun` and `done`; all int64
    64-aligned: the tensors

The memory has no name: it belongs to a descriptor that the writer passes on, and the system frees it when the last
process that holds it is gone, however it went.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from personality.manifests.errors import CorruptError, PersonaError
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.dtypes import TORCH_DTYPES

_MARK = b"PERSONA\x01"
_ALIGNED = 64  # a cache line: counters and tensors never share one
_CLOSED, _STEP = 0, 1  # places of the flags
_PAUSE = 0.0005  # seconds
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Stamp:
    """The counters at one moment.

    Attributes:
        begun: for each changing tensor, the last step that began to write it; int64 (tensors,).
        done: the last step that was written to its end; int64 (tensors,).
    """

    begun: Tensor
    done: Tensor


@dataclass(frozen=True)
class Reading:
    """Whose weights were read between two stamps.

    Attributes:
        first: the oldest step of which something may have been read.
        last: the newest.
    """

    first: int
    last: int

    @property
    def torn(self) -> bool:
        """Whether weights of several steps may have been read."""
        return self.first != self.last


def reading(before: Stamp, after: Stamp) -> Reading:
    """What was read between two stamps.

    A tensor holds step s alone from `done` = s until `begun` > s. So nothing older than the smallest `done` before, and
    nothing newer than the largest `begun` after, can have been read. The verdict errs on one side only: a tensor that
    had been read already when it was written counts as torn. It relies on stores becoming visible in their order, as
    on x86; on processors with weaker ordering a torn reading can go unnoticed.
    """
    return Reading(int(before.done.min()), int(after.begun.max()))


class SharedWeights:
    """Tensors in shared memory, and counters of the steps that wrote them.

    Args:
        descriptor: of the memory; it stays open as long as this object.

    Attributes:
        tensors: all tensors, as views on the shared memory, by name.
        changing: names of those that the writer changes, in the order of their counters.

    Raises:
        CorruptError: when the descriptor is of something else.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        header, self._state_at = _read_header(self._map)
        self.changing: list[str] = header["changing"]
        count = len(self.changing)
        state = torch.frombuffer(self._map, dtype=torch.int64, offset=self._state_at, count=2 + 2 * count)
        self._flags, self._begun, self._done = state[:2], state[2 : 2 + count], state[2 + count :]
        self.tensors: dict[str, Tensor] = {}
        for entry in header["tensors"]:
            spec = TensorSpec(entry["name"], entry["dtype"], tuple(entry["shape"]))
            dtype = TORCH_DTYPES[spec.dtype]
            flat = torch.frombuffer(self._map, dtype=dtype, offset=entry["offset"], count=spec.elements)
            self.tensors[spec.name] = flat.view(spec.shape)

    @classmethod
    def create(cls, tensors: Mapping[str, Tensor], changing: Collection[str]) -> SharedWeights:
        """Shared memory with copies of tensors, at step 0.

        Args:
            tensors: by name, on any device, of at least one element each.
            changing: names of those that will be written; the others stay as they are.

        Raises:
            PersonaError: when there is not enough memory.
        """
        ordered = [name for name in tensors if name in changing]
        header, size = _layout(tensors, ordered)
        descriptor = _allocate(size)
        os.pwrite(descriptor, header, 0)
        found = cls(descriptor)
        for name, tensor in tensors.items():
            found.tensors[name].copy_(tensor.detach())
        return found

    def close(self) -> None:
        """Give the descriptor back; the memory stays until nobody has a view on it."""
        os.close(self.descriptor)

    @property
    def nbytes(self) -> int:
        """Size of the memory, header and counters included."""
        return len(self._map)

    @property
    def step(self) -> int:
        """The last step that was written to its end."""
        return int(self._flags[_STEP])

    @property
    def closed(self) -> bool:
        """Whether the writer has said that nothing more will come."""
        return bool(self._flags[_CLOSED])

    def finish(self) -> None:
        """Say that nothing more will come."""
        self._flags[_CLOSED] = 1

    def stamp(self) -> Stamp:
        """The counters now."""
        # `done` first: what is written between the two copies must make a reading look wider, not narrower.
        done = self._done.clone()
        return Stamp(self._begun.clone(), done)

    @torch.no_grad()
    def write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the changing tensors one after the other, without waiting for anybody.

        Args:
            step: number of the step, larger than the one before.
            tensors: new values of all changing tensors, by name.
        """
        for index, name in enumerate(self.changing):
            self._begun[index] = step
            self.tensors[name].copy_(tensors[name].detach())
            self._done[index] = step
        self._flags[_STEP] = step

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """For a writer that changes the views itself, in an order of its own: all of them count as under way."""
        self._begun.fill_(step)
        yield
        self._done.fill_(step)
        self._flags[_STEP] = step

    def adopt(self, model: Any) -> None:
        """Make a model's parameters views on the shared memory, so that whoever changes them changes what is read.

        Args:
            model: on the CPU; its parameters by their own names are among the tensors, in the same dtypes.

        Raises:
            CorruptError: a parameter is missing, or of another shape or dtype.
        """
        for name, parameter in model.named_parameters():
            found = self.tensors.get(name)
            if found is None or found.shape != parameter.shape or found.dtype != parameter.dtype:
                raise CorruptError(f"the shared weights hold {_what(found)} where the model has {name}")
            parameter.data = found

    @torch.no_grad()
    def copy_into(self, model: Any, patience: float = 10.0) -> tuple[int, int]:
        """Copy the weights of one step into a model of the reader's own, again until they belong together.

        Args:
            model: with parameters of the same names and shapes.
            patience: give up after so many seconds.

        Returns:
            The step, and how many copies were thrown away.

        Raises:
            PersonaError: the writer never paused long enough.
        """
        own = dict(model.named_parameters())
        began, thrown_away = time.monotonic(), 0
        while time.monotonic() - began < patience:
            before = self.stamp()
            if reading(before, before).torn:  # a step is being written: a copy would be for nothing
                time.sleep(_PAUSE)
                continue
            for name in self.changing:
                own[name].copy_(self.tensors[name])
            found = reading(before, self.stamp())
            if not found.torn:
                return found.last, thrown_away
            thrown_away += 1
        raise PersonaError(
            f"the weights were never at rest within {patience:g} seconds ({thrown_away} copies were thrown away)",
            "let the writer pause between its steps",
        )


def _what(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _up(place: int) -> int:
    return -(-place // _ALIGNED) * _ALIGNED


def _layout(tensors: Mapping[str, Tensor], changing: list[str]) -> tuple[bytes, int]:
    """The beginning of the memory, and the size of the whole."""
    specs = [TensorSpec(name, _NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]

    def text(places: list[int]) -> bytes:
        entries = [
            {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "offset": place}
            for spec, place in zip(specs, places, strict=True)
        ]
        return json.dumps({"changing": changing, "tensors": entries}).encode()

    # Places have at most 20 digits more than zeros do: room for them is left behind the header.
    room = len(text([0] * len(specs))) + 20 * len(specs)
    place = _up(_up(len(_MARK) + 8 + room) + 8 * (2 + 2 * len(changing)))
    places = []
    for spec in specs:
        places.append(place)
        place = _up(place + spec.nbytes)
    return _MARK + room.to_bytes(8, "little") + text(places).ljust(room), max(place, 1)


def _read_header(memory: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header, and where the flags and counters begin."""
    if memory[: len(_MARK)] != _MARK:
        raise CorruptError("these are no shared weights of this program", "give the descriptor that the writer passed")
    start = len(_MARK) + 8
    room = int.from_bytes(memory[len(_MARK) : start], "little")
    header: dict[str, Any] = json.loads(memory[start : start + room])
    return header, _up(start + room)


def _allocate(size: int) -> int:
    """A descriptor of memory without a name."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > there:  # the system would promise it, and end some process when it has to keep the promise
        raise PersonaError(
            f"there is no room for {size / 1e9:.1f} GB of shared weights: this machine has {there / 1e9:.1f} GB",
            "use a machine with more memory",
        )
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("persona-weights")
    else:  # a file that is deleted before anything is in it
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
