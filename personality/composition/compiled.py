"""The block functions of `kernels`, compiled: one pass over memory instead of one for each operation, the same bits.

A kernel is compiled once for a machine, by a process of its own (`compiling`), into the user's cache; whoever needs it
meanwhile composes with the uncompiled function. A kernel that does not give the same bits is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import os
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
        """A file name that is another one wherever the kernel could be."""
        parts = (self.formula.method, self.formula.normalize, str(self.vectors), self.base, self.delta)
        made_by = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {inspect.getsource(kernels)}"
        return f"{'-'.join(parts)}-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.pt2"


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
    path = cache_folder() / signature.name
    if not path.is_file():
        return None
    try:
        loader: Any = importlib.import_module("torch._C._aoti").AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except (ImportError, AttributeError, TypeError, RuntimeError):
        return None  # of another torch, or damaged

    def block(base: Tensor, deltas: Sequence[Tensor], scales: Tensor, limits: Tensor, lam: Tensor) -> Any:
        shape = base.shape
        flat = [tensor.reshape(-1) for tensor in (base, *deltas)]
        composed, total = loader.boxed_run([*flat, scales, limits, lam])
        return composed.reshape(shape), total

    return block if _same_bits(signature, block) else None


def start_compiling(signature: Signature) -> subprocess.Popen[bytes] | None:
    """Have a process of lowest priority compile a kernel into the cache; None where that is not to be had."""
    if not can_compile() or (cache_folder() / signature.name).exists():
        return None
    with contextlib.suppress(OSError):
        return subprocess.Popen(
            [sys.executable, "-m", "personality.composition.compiling", *arguments(signature)],
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


def _same_bits(signature: Signature, block: Block) -> bool:
    """Try a kernel on numbers of all sizes, zeros of both signs among them."""
    generator = torch.Generator().manual_seed(0)
    base_dtype, delta_dtype = TORCH_DTYPES[signature.base], TORCH_DTYPES[signature.delta]

    def numbers(dtype: torch.dtype) -> Tensor:
        sizes = torch.randint(-40, 4, (_CHECKED,), generator=generator)
        found = torch.randn(_CHECKED, generator=generator) * 2.0**sizes
        return torch.where(torch.arange(_CHECKED) % 7 == 0, found.sign() * 0.0, found).to(dtype)

    base, deltas = numbers(base_dtype), [numbers(delta_dtype) for _ in range(signature.vectors)]
    dtype = compute_dtype(signature.base)
    scales = torch.linspace(-0.7, 1.3, signature.vectors, dtype=dtype)
    limits = torch.linspace(0.0, 1e-3, signature.vectors, dtype=dtype)
    lam = torch.tensor(0.9, dtype=dtype)
    try:
        found, _ = block(base, deltas, scales, limits, lam)
    except RuntimeError:
        return False
    wanted, _ = uncompiled(signature)(base, deltas, scales, limits, lam)
    return bool((found.view(torch.uint8) == wanted.view(torch.uint8)).all())
