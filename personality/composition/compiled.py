"""The block functions of `kernels`, compiled: one pass over memory instead of one for each operation, the same bits.

A kernel is compiled once for a machine, by a process of its own (`compiling`), into the user's cache; whoever needs it
meanwhile composes with the uncompiled function. A kernel that does not give the same bits is never used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality.composition import kernels
from personality.composition.kernels import Formula
from personality.vectors.dtypes import TORCH_DTYPES, compute_dtype

Block = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`kernels.compose` for one signature: base, deltas, scales and limits (1-D), λ (0-D), the last three compute dtype."""

SMALLEST = 64
"""Blocks of fewer elements go to the uncompiled function."""
_CHECKED = 1000


@dataclass(frozen=True)
class Signature:
    """What a kernel is compiled for.

    Attributes:
        formula: the method.
        vectors: how many take part.
        base, delta: dtypes of the weights and of all vectors, safetensors' names.
    """

    formula: Formula
    vectors: int
    base: str
    delta: str

    @property
    def name(self) -> str:
        """A name that is another one wherever the kernel could be."""
        made_by = f"{torch.__version__} {_processor()} {inspect.getsource(kernels)}"
        return f"{'-'.join(arguments(self))}-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}"

    def path(self, package: bytes) -> Path:
        """Where a compiled kernel lies: under a name that also says what is in the file.

        Args:
            package: the file's content.
        """
        content = hashlib.sha256(self.name.encode() + package).hexdigest()
        return cache_folder() / f"{self.name}-{content[:32]}.pt2"

    def find(self) -> Path | None:
        """The compiled kernel; None when there is none. What was damaged does not count: it could end the process."""
        with contextlib.suppress(OSError):
            for path in sorted(cache_folder().glob(f"{self.name}-*.pt2")):
                if path == self.path(path.read_bytes()):
                    return path
        return None


def cache_folder() -> Path:
    """Where compiled kernels lie: `$XDG_CACHE_HOME/persona/kernels`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "persona" / "kernels"


def uncompiled(signature: Signature) -> Block:
    """The block function as it is written."""
    dtype = compute_dtype(signature.base)

    def block(base: Tensor, deltas: Sequence[Tensor], scales: Tensor, limits: Tensor, lam: Tensor) -> Any:
        return kernels.compose(signature.formula, base, deltas, scales.unbind(), limits.unbind(), lam, dtype)

    return block


def compiled(signature: Signature) -> Block | None:
    """The compiled block function; None when it is not there (yet), or does not give the uncompiled one's bits."""
    path = signature.find()
    return _loaded(path, signature) if path is not None else None


@functools.cache
def _loaded(path: Path, signature: Signature) -> Block | None:
    """The kernel in a file; once for a process."""
    try:
        loader: Any = importlib.import_module("torch._C._aoti").AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except (ImportError, AttributeError, TypeError, RuntimeError):
        return None  # a torch without it

    def block(base: Tensor, deltas: Sequence[Tensor], scales: Tensor, limits: Tensor, lam: Tensor) -> Any:
        shape = base.shape
        flat = [tensor.reshape(-1) for tensor in (base, *deltas)]
        composed, total = loader.boxed_run([*flat, scales, limits, lam])
        return composed.reshape(shape), total

    return block if _same_bits(signature, block) else None


def start_compiling(signature: Signature) -> subprocess.Popen[bytes] | None:
    """Have a process of lowest priority compile a kernel into the cache; None where that is not to be had."""
    if not can_compile() or signature.find():
        return None
    with contextlib.suppress(OSError):
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "personality.composition.compiling", *arguments(signature)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    return None


def can_compile() -> bool:
    """Whether there is a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


def arguments(signature: Signature) -> list[str]:
    """A signature as the arguments of `compiling`."""
    formula = signature.formula
    return [formula.method, formula.normalize, str(signature.vectors), signature.base, signature.delta]


@functools.cache
def _processor() -> str:
    """What a kernel is compiled for: every instruction that this processor has, and others of its kind may lack."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    instructions = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {instructions}"


def _same_bits(signature: Signature, block: Block) -> bool:
    """Try a kernel on numbers of all sizes, subnormal ones and zeros of both signs among them."""
    generator = torch.Generator().manual_seed(0)
    base_dtype, delta_dtype = TORCH_DTYPES[signature.base], TORCH_DTYPES[signature.delta]
    dtype = compute_dtype(signature.base)

    def numbers(wanted: torch.dtype) -> Tensor:
        # Down to the smallest there is; up to where no sum of them overflows, since two NaNs may differ in their bits.
        limits = torch.finfo(wanted)
        smallest, largest = math.log2(limits.smallest_normal * limits.eps), math.log2(limits.max) / 2
        exponents = torch.empty(_CHECKED, dtype=torch.float64).uniform_(smallest, largest, generator=generator)
        # Half of them close enough to one another for rounding and election to matter.
        exponents[::2] = exponents[::2].clamp(-6, 1)
        found = torch.randn(_CHECKED, generator=generator, dtype=torch.float64).sign() * 2**exponents
        return torch.where(torch.arange(_CHECKED) % 7 == 0, found.sign() * 0.0, found).to(wanted)

    base, deltas = numbers(base_dtype), [numbers(delta_dtype) for _ in range(signature.vectors)]
    scales = torch.linspace(-0.7, 1.3, signature.vectors, dtype=dtype)
    limits = torch.linspace(0.0, 1e-3, signature.vectors, dtype=dtype)
    lam = torch.tensor(0.9, dtype=dtype)
    try:
        found, _ = block(base, deltas, scales, limits, lam)
    except RuntimeError:
        return False
    wanted, _ = uncompiled(signature)(base, deltas, scales, limits, lam)
    # Not `equal`, to which zeros of both signs are the same.
    return found.dtype == wanted.dtype and torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
