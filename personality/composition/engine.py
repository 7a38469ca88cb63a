"""How blocks are composed: on which device, by how many threads, compiled or not. The bits are the same."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from subprocess import Popen
from typing import TypeVar

import torch
from torch import Tensor

from personality.composition.compiled import SMALLEST, Block, Signature, compiled, start_compiling, uncompiled
from personality.manifests.errors import UsageError
from personality.vectors.dtypes import compute_dtype

BLOCK_ELEMENTS = 1 << 20
"""Elements that a thread is given at a time: few enough for memory, enough for the calls around them not to count."""
_CACHED_ELEMENTS = 1 << 17
"""Elements that a thread composes at a time uncompiled: what is made on the way stays in a processor's cache."""
_GPU_BLOCK_ELEMENTS = 1 << 24
_WORTH_COMPILING_S = 3.0
"""Uncompiled seconds after which a kernel is compiled for the rest, and for later runs; compiling takes some 12 s."""
_DEVICES = "give `cpu`, or a GPU such as `cuda` or `cuda:1`"


Made = TypeVar("Made")


class Engine:
    """Composes blocks.

    Args:
        device: `cpu`, or a GPU such as `cuda`, through which the blocks are streamed.
        threads: processor threads to compose with; None for half of the cores, as others read, hash and write.
        compiling: whether kernels may be compiled, and compiled ones used.

    Raises:
        UsageError: for a device that torch does not have here, or fewer threads than one.
    """

    def __init__(self, device: str = "cpu", threads: int | None = None, *, compiling: bool = True) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"cannot compose with {threads} threads", "give at least 1, or leave the number out")
        self.device = _device(device)
        self.threads = threads or max(1, cores() // 2)
        self._compiling = compiling and self.device.type == "cpu"
        self._kernels: dict[Signature, _Kernel] = {}
        self._helpers: list[ThreadPoolExecutor] = []
        self._numbers: tuple[tuple[object, ...], list[Tensor]] | None = None

    @property
    def block_elements(self) -> int:
        """Elements to give at a time; no bit depends on it."""
        return BLOCK_ELEMENTS * self.threads if self.device.type == "cpu" else _GPU_BLOCK_ELEMENTS

    def ahead(self, tasks: Iterable[Callable[[], Made]]) -> Iterator[Made]:
        """Results of tasks in order; the next one is worked on by another thread while the caller uses one."""
        waiting: Future[Made] | None = None
        for task in tasks:
            future = self._pool.submit(task)
            if waiting is not None:
                yield waiting.result()
            waiting = future
        if waiting is not None:
            yield waiting.result()

    def at_once(self, tasks: Sequence[Callable[[], Made]]) -> list[Made]:
        """Results of tasks, each by a thread of its own: the n-th task always by the same one, which remembers what it
        decoded last.
        """
        while len(self._helpers) < len(tasks):
            self._helpers.append(ThreadPoolExecutor(1, "decode", _single_threaded))
        futures = [helper.submit(task) for helper, task in zip(self._helpers, tasks, strict=False)]
        return [future.result() for future in futures]

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "ahead", _single_threaded)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Use this engine's number of threads inside the block."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def compose(
        self,
        signature: Signature,
        base: Tensor,
        deltas: Sequence[Tensor],
        scales: Sequence[float],
        limits: Sequence[float],
        lam: float,
    ) -> tuple[Tensor, bool]:
        """Compose a block; arguments as for `kernels.compose`, which says what is computed.

        Returns:
            W in the base's dtype and shape, on the processor, and whether it is finite.
        """
        if signature not in self._kernels:
            pieces = _CACHED_ELEMENTS * self.threads if self.device.type == "cpu" else 0
            self._kernels[signature] = _Kernel(signature, compiling=self._compiling, pieces=pieces)
        numbers = self._as_tensors(signature, scales, limits, lam)
        if self.device.type != "cpu":
            base, deltas = base.to(self.device), [delta.to(self.device) for delta in deltas]
        composed, total = self._kernels[signature].run(base, deltas, *numbers)
        # A finite sum has finite terms; one that is not may only have overflowed.
        finite = bool(torch.isfinite(total)) or bool(torch.isfinite(composed).all())
        return composed.cpu(), finite

    def _as_tensors(
        self, signature: Signature, scales: Sequence[float], limits: Sequence[float], lam: float
    ) -> list[Tensor]:
        """The numbers as a kernel wants them; a tensor's blocks share them."""
        key = (signature.base, tuple(scales), tuple(limits), lam)
        if self._numbers is None or self._numbers[0] != key:
            dtype = compute_dtype(signature.base)
            self._numbers = key, [torch.tensor(item, dtype=dtype, device=self.device) for item in (scales, limits, lam)]
        return self._numbers[1]


class _Kernel:
    """One block function: the compiled one where it is there; else as it is written, until its cost makes compiling
    worth while and that is done.

    Args:
        signature: of the function.
        compiling: whether to compile it.
        pieces: elements that it is given at a time while it is not compiled; 0 for all at once.
    """

    def __init__(self, signature: Signature, *, compiling: bool, pieces: int) -> None:
        self._signature = signature
        self._written = _in_pieces(uncompiled(signature), pieces) if pieces else uncompiled(signature)
        self._fast = compiled(signature) if compiling else None
        self._may_compile = compiling and self._fast is None
        self._process: Popen[bytes] | None = None
        self._seconds = 0.0

    def run(self, base: Tensor, deltas: Sequence[Tensor], *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """As `Block`."""
        block: Block = self._written if self._fast is None or base.numel() < SMALLEST else self._fast
        started = time.perf_counter()
        found = block(base, deltas, *numbers)
        if self._may_compile:
            self._seconds += time.perf_counter() - started
            self._consider()
        return found

    def _consider(self) -> None:
        """Start the compiler, or take over what it made."""
        if self._process is None:
            if self._seconds > _WORTH_COMPILING_S:
                self._process = start_compiling(self._signature)
                self._may_compile = self._process is not None
        elif self._process.poll() is not None:
            self._fast = compiled(self._signature)
            self._may_compile = False


def _in_pieces(block: Block, elements: int) -> Block:
    """A block function that goes through long blocks piece by piece."""

    def whole(base: Tensor, deltas: Sequence[Tensor], *numbers: Tensor) -> tuple[Tensor, Tensor]:
        if base.numel() <= elements:
            return block(base, deltas, *numbers)
        flat, changes = base.reshape(-1), [delta.reshape(-1) for delta in deltas]
        composed, total = torch.empty_like(flat), torch.zeros((), dtype=torch.float32)
        for start in range(0, len(flat), elements):
            piece = slice(start, start + elements)
            composed[piece], part = block(flat[piece], [change[piece] for change in changes], *numbers)
            total += part
        return composed.reshape(base.shape), total

    return whole


def _single_threaded() -> None:
    """What these threads do is spread over them already."""
    torch.set_num_threads(1)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"`{name}` is no device of torch's", _DEVICES) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"there is no device `{name}` here: torch {torch.__version__} sees no GPU",
            "compose with `--device cpu`, or install a torch that was built for the GPU",
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"cannot compose on `{name}`", _DEVICES)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no device `{name}` here: torch sees {torch.cuda.device_count()}", _DEVICES)
    return device
