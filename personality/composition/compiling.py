"""`python -m personality.composition.compiling METHOD NORMALIZE VECTORS BASE DELTA`: one kernel into the user's cache.

A process of its own: what a compiler needs of memory and imports is no part of a build.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality.composition.compiled import SMALLEST, Signature, cache_folder, uncompiled
from personality.composition.kernels import Formula
from personality.manifests.atomic import abandoned, sync, temporary_beside
from personality.vectors.dtypes import TORCH_DTYPES, compute_dtype


class _Module(torch.nn.Module):
    """What torch exports: the block function of a signature."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self._block = uncompiled(signature)

    def forward(self, base: Tensor, deltas: list[Tensor], scales: Tensor, limits: Tensor, lam: Tensor) -> Any:
        return self._block(base, deltas, scales, limits, lam)


def compile_kernel(signature: Signature) -> Path:
    """Compile a kernel; it gets its name when it is whole.

    Returns:
        The file.
    """
    from torch._inductor import aoti_compile_and_package, config

    length = 4 * SMALLEST
    base = torch.zeros(length, dtype=TORCH_DTYPES[signature.base])
    deltas = [torch.zeros(length, dtype=TORCH_DTYPES[signature.delta]) for _ in range(signature.vectors)]
    dtype = compute_dtype(signature.base)
    numbers = [torch.ones(signature.vectors, dtype=dtype) for _ in range(2)]
    size = torch.export.Dim("elements", min=SMALLEST)
    exported = torch.export.export(
        _Module(signature),
        (base, deltas, *numbers, torch.ones((), dtype=dtype)),
        dynamic_shapes=({0: size}, [{0: size}] * signature.vectors, None, None, None),
    )
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in abandoned(folder):
        shutil.rmtree(left, ignore_errors=True)
    temporary = temporary_beside(folder / signature.name)  # another process may be at the same kernel
    temporary.mkdir()
    try:
        package = temporary / "kernel.pt2"
        with config.patch({"cpp.dynamic_threads": True}):
            aoti_compile_and_package(exported, package_path=str(package))
        sync(package)
        path = signature.path(package.read_bytes())
        for old in folder.glob(f"{signature.name}-*"):
            old.unlink(missing_ok=True)
        package.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def main() -> None:
    """Read the arguments and compile."""
    os.nice(19)
    method, normalize, vectors, base, delta = sys.argv[1:]
    formula = Formula(method, normalize)  # type: ignore[arg-type]  # written by `arguments`
    compile_kernel(Signature(formula, int(vectors), base, delta))


if __name__ == "__main__":
    main()
