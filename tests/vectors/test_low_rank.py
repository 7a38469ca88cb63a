from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.errors import CorruptError, IncompatibleError
from personality.manifests.repository import Repository
from personality.vectors import low_rank
from personality.vectors.encoding import Encoding
from personality.vectors.fine_tune import FineTune
from personality.vectors.stored import StoredTask
from personality.vectors.task_vector import TaskVector, open_task_vector
from tests.composition.conftest import random_tensor, same_bits, store
from tests.vectors.encoded import checkpoint, encode, whole


def open_factors(
    root: Path, a: Tensor, b: Tensor, scaling: float, *, transposed: bool = False
) -> low_rank.LowRankVector:
    repository = Repository(root)
    header = low_rank.header({"w": scaling}, ["w"] if transposed else [])
    vector_id = store(repository, {"w" + low_rank.SUFFIX_A: a, "w" + low_rank.SUFFIX_B: b}, header)
    vector = open_task_vector(repository, vector_id, "listening@1")
    assert isinstance(vector, low_rank.LowRankVector)
    return vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [1, 8, 40])
def test_rows_are_scaling_times_b_a(tmp_path: Path, dtype: torch.dtype, rank: int) -> None:
    a, b = random_tensor((rank, 33), 1, dtype=dtype), random_tensor((70, rank), 2, dtype=dtype)
    vector = open_factors(tmp_path, a, b, 0.75)
    assert vector.shapes == {"w": (70, 33)}
    wanted = b.double() @ a.double() * 0.75
    size = b.double().abs() @ a.double().abs()  # the error bound of a sum of `rank` products
    for start, stop in ((0, 70), (0, 1), (13, 29), (69, 70)):
        found = vector.rows("w", start, stop)
        assert found.dtype == torch.float32
        error = (found.double() - wanted[start:stop]).abs()
        assert bool((error <= (rank + 2) * 2**-24 * size[start:stop]).all())


def test_transposed_as_conv1d_keeps_them(tmp_path: Path) -> None:
    a, b = random_tensor((4, 10), 1), random_tensor((6, 4), 2)
    vector = open_factors(tmp_path, a, b, 2.0, transposed=True)
    assert vector.shapes == {"w": (10, 6)}
    torch.testing.assert_close(vector.rows("w", 3, 9), (b @ a).T[3:9] * 2.0)


def test_an_element_is_the_same_in_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = open_factors(tmp_path, random_tensor((16, 301), 1), random_tensor((257, 16), 2), 1.5)
    whole = vector.rows("w", 0, 257)
    for size in (1, 3, 64, 100):
        monkeypatch.setattr(low_rank, "_BLOCK_ELEMENTS", 700 * size)
        parts = [vector.rows("w", start, min(start + size, 257)) for start in range(0, 257, size)]
        assert same_bits(torch.cat(parts), whole)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    transposed=st.booleans(),
    cut=st.integers(0, 36),
    seed=st.integers(0, 1000),
)
def test_a_stack_of_products(
    tmp_path: Path, sizes: tuple[int, int, int, int], transposed: bool, cut: int, seed: int
) -> None:
    """Each matrix is its own product, and rows cut anywhere are the same bits."""
    count, rank, inner, outer = sizes
    a, b = random_tensor((count, rank, inner), seed), random_tensor((count, outer, rank), seed + 1)
    vector = open_factors(tmp_path, a, b, 0.5, transposed=transposed)
    wanted = 0.5 * torch.einsum("eor,eri->eoi", b.double(), a.double())
    wanted = wanted.transpose(1, 2) if transposed else wanted
    assert vector.shapes == {"w": tuple(wanted.shape)}
    assert not vector.has_factors("w")
    rows = count * wanted.shape[1]
    whole = vector.rows("w", 0, rows)
    torch.testing.assert_close(whole.double(), wanted.reshape(rows, -1), rtol=1e-5, atol=1e-6)
    if 0 < cut < rows:
        assert same_bits(torch.cat([vector.rows("w", 0, cut), vector.rows("w", cut, rows)]), whole)


def test_what_is_carried_dense(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    norm = random_tensor((7,), 3, dtype=torch.bfloat16)
    factors = {"w" + low_rank.SUFFIX_A: torch.ones(2, 5), "w" + low_rank.SUFFIX_B: torch.ones(4, 2)}
    vector_id = store(repository, {**factors, "norm": norm}, low_rank.header({"w": 1.0}, [], ["norm"]))
    vector = open_task_vector(repository, vector_id, "listening@1")
    assert isinstance(vector, low_rank.LowRankVector)
    assert vector.shapes == {"w": (4, 5), "norm": (7,)}
    assert (vector.has_factors("w"), vector.has_factors("norm")) == (True, False)
    assert same_bits(vector.rows("norm", 2, 6), norm[2:6, None])
    for dense, message in ((["norm", "other"], "`other` is said to be dense"), ([], "has 3 factors for 1 tensors")):
        vector_id = store(repository, {**factors, "norm": norm}, low_rank.header({"w": 1.0}, [], dense))
        with pytest.raises(CorruptError, match=message):
            open_task_vector(repository, vector_id, "listening@1")


def test_factors_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"the factors of `w` do not fit: A F32 \[4, 10\], B F32 \[6, 5\]"):
        open_factors(tmp_path, torch.ones(4, 10), torch.ones(6, 5), 1.0)


def test_a_factor_too_many(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    tensors = {f"{name}{suffix}": torch.ones(2, 2) for name in ("w", "v") for suffix in (".lora_A", ".lora_B")}
    vector_id = store(repository, tensors, low_rank.header({"w": 1.0}, []))
    with pytest.raises(CorruptError, match="has 4 factors for 1 tensors"):
        open_task_vector(repository, vector_id, "listening@1")


def make_mixed(root: Path, rank: int) -> tuple[Repository, FineTune, StoredTask, TaskVector, dict[str, Tensor]]:
    """A fine-tune of a matrix, a wide matrix, a norm, a stack of experts and a number, kept at a rank."""
    wanted = {
        "matrix": random_tensor((40, 60), 1),
        "conv": random_tensor((4, 8, 8), 2, dtype=torch.bfloat16).float(),
        "norm": random_tensor((40,), 3),
        "thin": random_tensor((40, 3), 4),
        "scalar": torch.tensor(0.5),
    }
    base = checkpoint(root / "base", {name: torch.zeros_like(tensor) for name, tensor in wanted.items()})
    source = FineTune(base, checkpoint(root / "tuned", wanted))
    repository = Repository(root / "repository")
    stored, vector = encode(repository, base, source, Encoding("low-rank", rank=rank))
    return repository, source, stored, vector, wanted


def test_what_has_no_factors_is_carried_dense(tmp_path: Path) -> None:
    _, source, stored, vector, wanted = make_mixed(tmp_path, 5)
    assert vector.shapes == source.shapes
    assert isinstance(vector, low_rank.LowRankVector)
    assert [name for name in vector.shapes if vector.has_factors(name)] == ["matrix"]
    for name in ("conv", "norm", "thin", "scalar"):
        assert torch.equal(whole(vector, name).float(), wanted[name])
    assert vector.specs["conv"].dtype == "BF16"
    assert vector.specs["norm"].dtype == "F32"
    for start, stop in ((0, 4), (3, 17), (31, 32)):
        assert torch.equal(vector.rows("conv", start, stop).float(), wanted["conv"].reshape(32, 8)[start:stop])
    assert stored.tensors["matrix"] == "F32 [40, 60]"


def test_the_residual_is_what_eckart_and_young_say(tmp_path: Path) -> None:
    _, _, stored, vector, wanted = make_mixed(tmp_path, 5)
    singular = torch.linalg.svdvals(wanted["matrix"].double())
    lost = float(singular[5:].norm())
    assert stored.residual is not None
    assert stored.residual.tensors == {"matrix": pytest.approx(lost / float(singular.norm()), rel=1e-5)}
    size = math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in wanted.values()))
    assert stored.residual.whole == pytest.approx(lost / size, rel=1e-5)
    assert float((whole(vector, "matrix") - wanted["matrix"]).norm()) == pytest.approx(lost, rel=1e-5)


def test_a_rank_that_makes_nothing_smaller(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="factors of rank 24 would not make any of 5 tensors smaller") as caught:
        make_mixed(tmp_path, 24)
    assert "lower rank" in caught.value.hint
    assert not list((tmp_path / "repository").rglob("*.safetensors"))


def test_headers_of_plain_adapters_are_what_they_were() -> None:
    """So that vectors that were imported before are the same vectors when they are imported again."""
    assert low_rank.header({"w": 2.0}, []) == {
        "kind": "task",
        "encoding": "low-rank",
        "scaling": {"w": 2.0},
        "transposed": [],
    }


def test_a_dense_tensor_that_is_not_there(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    tensors = {f"w{suffix}": torch.ones(2, 2) for suffix in (".lora_A", ".lora_B")}
    vector_id = store(repository, tensors, low_rank.header({"w": 1.0}, [], ["norm"]))
    with pytest.raises(CorruptError, match="`norm` is said to be dense"):
        open_task_vector(repository, vector_id, "listening@1")
