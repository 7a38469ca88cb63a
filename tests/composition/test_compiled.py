"""Compiled kernels: the same bits as the function that is written, or not used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.composition import compiled as compiled_module
from personality.composition import engine as engine_module
from personality.composition import kernels
from personality.composition.compiled import (
    SMALLEST,
    Signature,
    arguments,
    cache_folder,
    can_compile,
    compiled,
    start_compiling,
    uncompiled,
)
from personality.composition.engine import Engine
from personality.composition.kernels import Formula
from personality.vectors.dtypes import TORCH_DTYPES, compute_dtype
from tests.composition.conftest import same_bits

MEAN = Signature(Formula("ties", "mean"), 2, "BF16", "F32")
NEEDS_COMPILER = pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler")


def compile_into(cache: Path, signature: Signature) -> None:
    """As the engine has it done: by a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        process = start_compiling(signature)
        assert process is not None
        assert process.wait() == 0
        assert list(cache_folder().iterdir()) == [signature.find()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the kernel `MEAN`, really compiled."""
    cache = tmp_path_factory.mktemp("kernels")
    compile_into(cache, MEAN)
    return cache


@pytest.fixture
def cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil; returns the kernel's file."""
    shutil.copytree(made / "persona", tmp_path / "persona")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (path,) = cache_folder().iterdir()
    return path


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def numbers(elements: int, dtype: torch.dtype, seed: int, largest: float = 256.0) -> Tensor:
    """Of every size up to a largest; zeros of both signs and the smallest subnormal ones among them."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.finfo(dtype)
    found = torch.randn(elements, generator=generator, dtype=torch.float64)
    sizes = torch.randint(0, 5, (elements,), generator=generator)
    factors = [1.0, 1e-3, limits.smallest_normal * limits.eps * 9, largest, 0.0]
    return (found * torch.tensor(factors, dtype=torch.float64)[sizes]).to(dtype)


def check_bits(signature: Signature) -> None:
    """Any length, any place in memory, any scales, with one thread and with two."""
    fast, written = compiled(signature), uncompiled(signature)
    assert fast is not None
    before = torch.get_num_threads()
    dtype = compute_dtype(signature.base)
    dtypes = TORCH_DTYPES[signature.base], TORCH_DTYPES[signature.delta]
    largest = min(torch.finfo(each).max for each in dtypes) ** 0.5  # no sum of a few overflows
    try:
        for seed, elements in enumerate((SMALLEST, 65, 127, 1000, 4099, 70_001)):
            torch.set_num_threads(1 + seed % 2)
            # Views one element into their memory: a mapped tensor lies at any address.
            base = numbers(elements + 1, dtypes[0], seed, largest)[1:]
            deltas = [numbers(elements + 1, dtypes[1], 100 * seed + i, largest)[1:] for i in range(signature.vectors)]
            scales = torch.randn(signature.vectors, dtype=dtype, generator=torch.Generator().manual_seed(seed))
            limits = torch.linspace(0.0, 1e-2, signature.vectors, dtype=dtype)
            lam = torch.tensor(1.0 if seed % 2 else 0.37, dtype=dtype)
            found, total = fast(base, deltas, scales, limits, lam)
            wanted, _ = written(base, deltas, scales, limits, lam)
            assert same_bits(found, wanted)
            assert bool(torch.isfinite(wanted).all())
            broken = base.clone()
            broken[elements // 2] = float("inf")
            assert not bool(torch.isfinite(fast(broken, deltas, scales, limits, lam)[1]))
            assert total.dtype == torch.float32
    finally:
        torch.set_num_threads(before)


@NEEDS_COMPILER
def test_a_compiled_kernel_gives_the_same_bits(cache: Path) -> None:
    check_bits(MEAN)


@NEEDS_COMPILER
def test_a_kernel_leaves_the_processor_s_arithmetic_alone(cache: Path) -> None:
    """A library that was built with fast math may switch subnormal numbers off for the whole thread."""
    tiny = torch.tensor([1e-40, 3e-45])
    before = (tiny * 1.0).tolist()
    assert compiled(MEAN) is not None
    assert (tiny * 1.0).tolist() == before == tiny.tolist()


@NEEDS_COMPILER
def test_a_matrix_keeps_its_shape(cache: Path) -> None:
    fast = compiled(MEAN)
    assert fast
    ones = torch.ones(2)
    base = torch.randn(8, 32).bfloat16()
    found, _ = fast(base, [torch.zeros(8, 32)] * 2, ones, ones, ones[0])
    assert same_bits(found, base)


@NEEDS_COMPILER
def test_the_engine_takes_it_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, deltas = numbers(1000, torch.bfloat16, 1), [numbers(1000, torch.float32, i) for i in (2, 3)]
    others = [0.5, -1.0], [0.0, 1e-3], 0.9
    wanted, _ = Engine(threads=1, compiling=False).compose(MEAN, base, deltas, *others)
    engine = Engine(threads=1)
    engine.compose(MEAN, base, deltas, *others)

    def refuse(*_: object) -> None:
        raise AssertionError("the function that is written was called")

    monkeypatch.setattr(kernels, "compose", refuse)
    assert same_bits(engine.compose(MEAN, base, deltas, *others)[0], wanted)
    with pytest.raises(AssertionError, match="that is written was called"):
        engine.compose(MEAN, base[:9], [delta[:9] for delta in deltas], *others)


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize(
    "signature",
    [
        Signature(Formula("linear"), 1, "BF16", "BF16"),
        Signature(Formula("linear"), 3, "F16", "F32"),
        Signature(Formula("linear"), 2, "F64", "F64"),
        Signature(Formula("ties", "sum"), 1, "F32", "F32"),
        Signature(Formula("ties", "sum"), 3, "F16", "F16"),
        Signature(Formula("ties", "weighted"), 3, "BF16", "BF16"),
        Signature(Formula("ties", "mean"), 2, "F64", "F32"),
    ],
    ids=lambda signature: "-".join(arguments(signature)),
)
def test_every_other_kernel(signature: Signature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_into(tmp_path, signature)
    check_bits(signature)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "no end":
        del data[-100:]
    elif how == "empty":
        data = bytearray()
    elif how == "other machine code":  # running this would end the process, and no exception would say so
        start = data.find(b"\x7fELF") + 5000
        data[start : start + 200] = bytes(range(200))
    path.write_bytes(data)


@NEEDS_COMPILER
@pytest.mark.parametrize("how", ["cut", "no end", "empty", "other machine code"])
def test_a_damaged_file_is_not_used(cache: Path, how: str) -> None:
    damage(cache, how)
    assert compiled(MEAN) is None


@NEEDS_COMPILER
@pytest.mark.parametrize(
    "other",
    [
        Signature(Formula("ties", "mean"), 2, "F32", "F32"),  # reads and writes past the end of what it is given
        Signature(Formula("ties", "mean"), 3, "BF16", "F32"),
        Signature(Formula("ties", "sum"), 2, "BF16", "F32"),
    ],
    ids=lambda signature: "-".join(arguments(signature)),
)
def test_the_kernel_of_another_signature_is_not_used(cache: Path, other: Signature) -> None:
    """Neither under a name of its own, nor where somebody wrote the right name on it."""
    shutil.copyfile(cache, cache_folder() / cache.name.replace(MEAN.name, other.name))
    assert other.find() is None
    if other.base == MEAN.base:
        shutil.copyfile(cache, other.path(cache.read_bytes()))
        assert other.find() is not None
        assert compiled(other) is None


@NEEDS_COMPILER
def test_a_kernel_of_another_arithmetic_or_processor_is_not_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MEAN.find() == cache
    monkeypatch.setattr(compiled_module, "_processor", lambda: "another one")
    assert MEAN.find() is None
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[2]))
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert MEAN.find() is None


@NEEDS_COMPILER
def test_a_kernel_with_other_bits_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rounding too many, in one element of a thousand."""

    def lying(signature: Signature) -> compiled_module.Block:
        right = uncompiled(signature)

        def block(base: Tensor, *others: object) -> tuple[Tensor, Tensor]:
            found, total = right(base, *others)  # type: ignore[arg-type]
            found[base.numel() // 2] = torch.nextafter(found[base.numel() // 2].float(), torch.tensor(9e9)) * 1.01
            return found, total

        return block

    assert compiled(MEAN) is not None
    # The check compares with what is written: change that, and the compiled one is the liar.
    monkeypatch.setattr(compiled_module, "uncompiled", lying)
    compiled_module._loaded.cache_clear()
    assert compiled(MEAN) is None
    compiled_module._loaded.cache_clear()


@NEEDS_COMPILER
def test_a_negative_zero_is_another_bit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsigned(signature: Signature) -> compiled_module.Block:
        right = uncompiled(signature)

        def block(base: Tensor, *others: object) -> tuple[Tensor, Tensor]:
            found, total = right(base, *others)  # type: ignore[arg-type]
            return torch.where(found == 0, found.abs(), found), total

        return block

    monkeypatch.setattr(compiled_module, "uncompiled", unsigned)
    assert compiled(MEAN) is None


@NEEDS_COMPILER
def test_the_compiler_is_started_for_what_is_not_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def note(command: list[str], **_: object) -> object:
        started.append(command)
        return object()

    monkeypatch.setattr(subprocess, "Popen", note)
    assert start_compiling(MEAN) is None
    assert started == []
    damage(cache, "cut")
    assert start_compiling(MEAN) is not None
    assert started[0][-5:] == ["ties", "mean", "2", "BF16", "F32"]


def test_without_a_compiler_nothing_is_started(no_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not can_compile()
    assert start_compiling(MEAN) is None
    assert compiled(MEAN) is None


def test_the_engine_composes_without_a_compiler(no_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(engine_module, "_WORTH_COMPILING_S", 0.0)
    base, deltas = numbers(300, torch.bfloat16, 1), [numbers(300, torch.float32, i) for i in (2, 3)]
    engine = Engine(threads=1)
    for _ in range(3):
        found, finite = engine.compose(MEAN, base, deltas, [0.5, -1.0], [0.0, 0.0], 1.0)
        assert finite
        assert same_bits(
            found, Engine(threads=1, compiling=False).compose(MEAN, base, deltas, [0.5, -1.0], [0, 0], 1.0)[0]
        )


@NEEDS_COMPILER
def test_where_the_library_has_no_loader_nothing_is_compiled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._C._aoti", None)
    assert compiled(MEAN) is None
