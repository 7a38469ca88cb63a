"""The engine: when it compiles, on which devices, and that none of it changes a bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from personality.composition import engine as engine_module
from personality.composition import kernels
from personality.composition.compiled import Block, Signature, uncompiled
from personality.composition.engine import Engine, cores
from personality.composition.kernels import Formula
from personality.manifests.errors import UsageError
from personality.vectors.dtypes import TORCH_DTYPES, compute_dtype
from tests.composition.conftest import random_tensor, same_bits

SIGNATURE = Signature(Formula("ties", "mean"), 2, "BF16", "F32")
SCALES, LIMITS, LAM = [0.7, -1.3], [0.001, 0.002], 0.9


class Compiler:
    """In place of the process that compiles, and of the kernel that it makes."""

    def __init__(self) -> None:
        self.started: list[Signature] = []
        self.done = False
        self.runs = 0

    def start(self, signature: Signature) -> Compiler:
        self.started.append(signature)
        return self

    def poll(self) -> int | None:
        return 0 if self.done else None

    def compiled(self, signature: Signature) -> Block | None:
        written = uncompiled(signature)

        def block(*arguments: object) -> tuple[Tensor, Tensor]:
            self.runs += 1
            return written(*arguments)  # type: ignore[arg-type]

        return block if self.done else None


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(engine_module, "start_compiling", found.start)
    monkeypatch.setattr(engine_module, "compiled", found.compiled)
    return found


def block_of(signature: Signature, elements: int = 500) -> tuple[Tensor, list[Tensor]]:
    base = random_tensor((elements,), 0, dtype=TORCH_DTYPES[signature.base])
    dtype = TORCH_DTYPES[signature.delta]
    return base, [random_tensor((elements,), seed, 0.1, dtype) for seed in range(1, signature.vectors + 1)]


def compose(engine: Engine, elements: int = 500) -> Tensor:
    found, finite = engine.compose(SIGNATURE, *block_of(SIGNATURE, elements), SCALES, LIMITS, LAM)
    assert finite
    return found


def test_the_compiler_starts_when_it_is_worth_while(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The uncompiled function until the limit, then too while the compiler runs, then the kernel; the same bits."""
    monkeypatch.setattr(engine_module, "_WORTH_COMPILING_S", 1e9)
    engine = Engine(threads=1)
    results = [compose(engine) for _ in range(3)]
    assert compiler.started == []
    monkeypatch.setattr(engine_module, "_WORTH_COMPILING_S", 0.0)
    results += [compose(engine) for _ in range(3)]
    assert compiler.started == [SIGNATURE]
    assert compiler.runs == 0
    compiler.done = True
    results += [compose(engine) for _ in range(4)]
    assert compiler.started == [SIGNATURE]
    assert compiler.runs == 3  # the first of the four looked whether the compiler has ended
    assert all(same_bits(results[0], other) for other in results[1:])


def test_what_lies_in_the_cache_is_used_from_the_start(compiler: Compiler) -> None:
    compiler.done = True
    compose(Engine(threads=1))
    assert compiler.runs == 1
    compose(Engine(threads=1), elements=5)  # too few for a kernel
    assert compiler.runs == 1


def test_a_compiler_that_fails_is_asked_once(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_WORTH_COMPILING_S", 0.0)
    engine = Engine(threads=1)
    compose(engine)
    compiler.done = True
    monkeypatch.setattr(engine_module, "compiled", lambda signature: None)
    for _ in range(4):
        compose(engine)
    assert compiler.started == [SIGNATURE]


def test_nothing_is_compiled_where_that_is_not_wanted(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_WORTH_COMPILING_S", 0.0)
    compiler.done = True
    engine = Engine(threads=1, compiling=False)
    for _ in range(3):
        compose(engine)
    assert compiler.started == []
    assert compiler.runs == 0


def test_the_numbers_are_those_of_each_call() -> None:
    """They are kept from block to block, so another scale, limit, λ or base dtype has to be noticed."""
    engine = Engine(threads=1, compiling=False)
    calls: list[tuple[str, list[float], list[float], float]] = [
        ("BF16", [0.7, -1.3], [0.0, 0.0], 1.0),
        ("BF16", [-1.3, 0.7], [0.0, 0.0], 1.0),
        ("BF16", [-1.3, 0.7], [0.1, 0.0], 1.0),
        ("BF16", [-1.3, 0.7], [0.1, 0.0], -1.0),
        ("F64", [-1.3, 0.7], [0.1, 0.0], -1.0),
        ("F32", [-1.3, 0.7], [0.1, 0.0], -1.0),
        ("BF16", [0.7, -1.3], [0.0, 0.0], 1.0),
    ]
    for base_dtype, scales, limits, lam in calls:
        signature = Signature(SIGNATURE.formula, 2, base_dtype, "F32")
        base, deltas = block_of(signature)
        dtype = compute_dtype(base_dtype)
        wanted, _ = kernels.compose(
            signature.formula,
            base,
            deltas,
            torch.tensor(scales, dtype=dtype).unbind(),
            torch.tensor(limits, dtype=dtype).unbind(),
            torch.tensor(lam, dtype=dtype),
            dtype,
        )
        assert same_bits(engine.compose(signature, base, deltas, scales, limits, lam)[0], wanted)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 63, 499])
def test_what_is_not_finite_is_told(value: float, place: int) -> None:
    base, deltas = block_of(SIGNATURE)
    base[place] = value
    assert not Engine(threads=1, compiling=False).compose(SIGNATURE, base, deltas, SCALES, LIMITS, LAM)[1]


def test_infinities_that_cancel_and_sums_that_overflow() -> None:
    base, deltas = block_of(SIGNATURE)
    engine = Engine(threads=1, compiling=False)
    base[:2] = torch.tensor([float("inf"), float("-inf")])
    assert not engine.compose(SIGNATURE, base, deltas, SCALES, LIMITS, LAM)[1]
    base[:] = 3e38  # their sum is no float32, each of them is
    assert engine.compose(SIGNATURE, base, [delta * 0 for delta in deltas], SCALES, LIMITS, LAM)[1]


def test_threads() -> None:
    before = torch.get_num_threads()
    with Engine(threads=before + 2).running():
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before
    with pytest.raises(KeyboardInterrupt), Engine(threads=before + 1).running():
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before
    assert Engine().threads == max(1, cores() // 2)
    assert Engine(threads=3).block_elements == 3 * Engine(threads=1).block_elements


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=f"cannot compose with {threads} threads"):
        Engine(threads=threads)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "cpu:0:1", "CPU"])
def test_names_that_are_no_devices(name: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}` is no device of torch's") as caught:
        Engine(name)
    assert "`cpu`" in caught.value.hint


@pytest.mark.parametrize("name", ["meta", "mps"])
def test_devices_that_cannot_be_composed_on(name: str) -> None:
    with pytest.raises(UsageError, match=f"cannot compose on `{name}`"):
        Engine(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"no device `cuda:1` here: torch .* sees no GPU") as caught:
        Engine("cuda:1")
    assert "--device cpu" in caught.value.hint


def test_a_gpu_s_number_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Engine("cuda:1").device.index == 1
    assert Engine("cuda").block_elements > Engine("cpu").block_elements
    with pytest.raises(UsageError, match="there is no device `cuda:2` here: torch sees 2"):
        Engine("cuda:2")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("base", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("delta", ["BF16", "F32"])
@pytest.mark.parametrize(
    "formula", [Formula("linear"), *(Formula("ties", normalize) for normalize in ("sum", "mean", "weighted"))], ids=str
)
def test_a_gpu_gives_the_processor_s_bits(formula: Formula, base: str, delta: str) -> None:
    signature = Signature(formula, 3, base, delta)
    weights, deltas = block_of(signature, 100_003)
    weights[:4] = torch.tensor([0.0, -0.0, torch.finfo(weights.dtype).tiny / 4, -torch.finfo(weights.dtype).tiny / 4])
    deltas[0][:4] = 0.0
    numbers = ([0.7, -1.3, 0.31], [0.001, 0.002, 0.0], 0.9)
    found, finite = Engine("cuda").compose(signature, weights, deltas, *numbers)
    assert finite
    assert same_bits(found, Engine("cpu", threads=1, compiling=False).compose(signature, weights, deltas, *numbers)[0])
