"""Histograms of magnitudes: counting equals sorting, and a file that says something else is counted again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from personality.composition.threshold import Thresholds
from personality.gc import collect, find_garbage
from personality.manifests.errors import CorruptError
from personality.manifests.personality_record import Composition
from personality.manifests.repository import Repository
from personality.manifests.vector_store import MAGNITUDES_SUFFIX
from personality.vectors import magnitude_counter
from personality.vectors.kept_magnitudes import check_magnitudes, count_magnitudes, keep_magnitudes, magnitudes_of
from personality.vectors.magnitude_counter import MagnitudeCounter
from personality.vectors.magnitudes import Counted, Magnitudes, _is_whole
from personality.vectors.task_vector import TaskVector, open_task_vector
from tests.composition.conftest import Workshop, random_tensor, same_bits, workshop  # noqa: F401 - a fixture
from tests.conftest import fine_tuned

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1.0 + 2**-20, 1e-45, -1e-40, 2**-126, 6e4, -3.3895e38]


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    """A few tensors of any float dtype with repeated, special and random values; empty ones too."""
    found = {}
    for index in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(DTYPES))
        values = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False, allow_infinity=False))
        drawn = torch.tensor(draw(st.lists(values, max_size=40)), dtype=torch.float32)
        repeated = drawn.repeat(draw(st.sampled_from([1, 1, 3])))
        found[f"t{index}"] = repeated.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    return found


def count(values: Mapping[str, Tensor], block: int = 1 << 18) -> Magnitudes:
    counter = MagnitudeCounter()
    for name, tensor in values.items():
        counter.begin(name, tensor.numel())
        for start in range(0, tensor.numel(), block):
            counter.add(tensor[start : start + block])
    return counter.result()


def sorted_patterns(tensor: Tensor) -> np.ndarray:
    """Every magnitude's float32 pattern, the largest first."""
    return np.sort(tensor.float().numpy().view(np.int32) & 0x7FFFFFFF)[::-1]


@PROPERTY
@given(values=tensors(), data=st.data())
def test_counting_equals_sorting(values: dict[str, Tensor], data: st.DataObject) -> None:
    """Of one tensor and of several together, the pattern itself or its bin, and how many lie above."""
    found = count(values, data.draw(st.integers(1, 50)))
    names = data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, unique=True))
    ordered = np.sort(np.concatenate([sorted_patterns(values[name]) for name in names]))[::-1].astype(np.int64)
    for k in range(1, len(ordered) + 1):
        place = found.kth_largest(names, k)
        if place.exact:
            assert place.pattern == ordered[k - 1]
            assert place.above == (ordered > place.pattern).sum()
        else:
            assert place.pattern == ordered[k - 1] >> 16 << 16
            assert place.above == (ordered >> 16 > place.pattern >> 16).sum()
    with pytest.raises(ValueError, match=f"only {len(ordered)} elements, not {len(ordered) + 1}"):
        found.kth_largest(names, len(ordered) + 1)


def test_bfloat16_and_float16_are_exact_and_float32_training_is_not() -> None:
    values = random_tensor((100_000,), 0, 0.01)
    difference = (random_tensor((100_000,), 1).bfloat16() + values.bfloat16()).float() - values.float()
    found = count(
        {
            "bf16": values.bfloat16(),
            "f16": values.half(),
            "f32": values,
            "rounded": values.bfloat16().float(),
            "few": torch.where(torch.arange(100_000) % 3 == 0, values, values.bfloat16().float()),
            "difference": difference,
        }
    )
    exact = {name: found.kth_largest([name], 100).exact for name in ("bf16", "f16", "f32", "rounded", "few")}
    assert exact == {"bf16": True, "f16": False, "f32": False, "rounded": True, "few": True}
    assert found.kth_largest(["bf16", "few"], 7).exact
    assert not found.kth_largest(["bf16", "f32"], 7).exact


@pytest.mark.parametrize("share", [0.2, 0.5, 0.6, 1.0])
def test_blocks_change_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector is counted when it is stored and again when it is verified, in other blocks.

    Numbers that are no bfloat16s, few or many, lie together at the beginning, in the middle or at the end.
    """
    monkeypatch.setattr(magnitude_counter, "_TRIED_ELEMENTS", 1000)
    monkeypatch.setattr(magnitude_counter, "_WAITING_PATTERNS", 300)
    many, few = random_tensor((4000,), 2), torch.full((4000,), 0.1)
    for source in (many, few):
        for first in (0, 300, 4000 - int(share * 4000)):
            tensor = torch.ones(4000)
            tensor[first : first + int(share * 4000)] = source[first : first + int(share * 4000)]
            found = [count({"t": tensor}, block) for block in (17, 999, 1000, 4000)]
            assert all(found[0] == other for other in found[1:])


def test_as_many_patterns_as_are_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit the upper bits alone are counted, and what waits is bounded on the way."""
    monkeypatch.setattr(magnitude_counter, "_WAITING_PATTERNS", 5000)
    tensor = torch.arange(1, 400_001, dtype=torch.int32).mul(3).add(0x3F800000).view(torch.float32)
    mixed = torch.ones(900_000)
    mixed[450_000:850_000] = tensor
    found = count({"t": mixed}, 10_000)
    assert not found.kth_largest(["t"], 5).exact
    assert count({"t": mixed[:460_000]}, 10_000).kth_largest(["t"], 5).exact


SHAPES = {"model.layers.0.w": (30, 40), "model.layers.1.w": (700,), "model.layers.1.empty": (0, 3), "model.s": ()}


@pytest.fixture
def shop(workshop: Callable[..., Workshop]) -> Workshop:  # noqa: F811 - the fixture imported above
    return workshop({name: random_tensor(shape, 1, dtype=torch.bfloat16) for name, shape in SHAPES.items()})


def dense(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: random_tensor(shape, seed + i, 0.1, dtype) for i, (name, shape) in enumerate(SHAPES.items())}


def opened(shop: Workshop, vector: str) -> TaskVector:
    return open_task_vector(shop.repository, vector, "kind@1", reread=True)


def elements_of(vector: TaskVector) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in vector.shapes.items()}


def kept_beside(vector: TaskVector) -> Path:
    return vector.path.with_suffix(MAGNITUDES_SUFFIX)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.01, 0.3, 0.77])
def test_thresholds_keep_the_largest(shop: Workshop, dtype: torch.dtype, density: float) -> None:
    values = dense(1, dtype)
    vector = opened(shop, shop.dense(values))
    names = list(vector.shapes)
    found = Thresholds(vector, names, None).of_vector(density)
    every = torch.cat([tensor.float().abs().reshape(-1) for tensor in values.values()])
    k = max(1, int(density * len(every)))
    assert found == every.sort(descending=True).values[k - 1].item()
    only = values[names[0]].float().abs().reshape(-1)
    wanted = only.sort(descending=True).values[max(1, int(density * len(only))) - 1].item()
    assert Thresholds(vector, names, None).of_tensor(names[0], density) == wanted


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_is_what_was_counted(shop: Workshop, dtype: torch.dtype) -> None:
    vector = opened(shop, shop.dense(dense(1, dtype)))
    counted = count_magnitudes(vector)
    assert not kept_beside(vector).exists()
    assert magnitudes_of(vector) == counted
    assert Magnitudes.load(kept_beside(vector), elements_of(vector)) == counted
    assert kept_beside(vector).stat().st_mode & 0o777 == 0o444
    check_magnitudes(vector, "kind@1")
    assert counted != count_magnitudes(opened(shop, shop.dense(dense(2, dtype))))


def test_a_vector_without_an_element(shop: Workshop) -> None:
    vector = opened(shop, shop.dense({"model.layers.1.empty": torch.zeros(0, 3)}))
    assert magnitudes_of(vector) == magnitudes_of(vector) == Magnitudes({"model.layers.1.empty": one([], [], True)})


def test_low_rank_vectors_are_counted_as_the_product(shop: Workshop) -> None:
    a, b = random_tensor((3, 40), 1), random_tensor((30, 3), 2)
    vector = opened(shop, shop.low_rank({"model.layers.0.w": (a, b, 0.5)}))
    product = vector.rows("model.layers.0.w", 0, 30).reshape(-1)
    assert magnitudes_of(vector) == count({"model.layers.0.w": product})


def spoil(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_counted_again(shop: Workshop, data: st.DataObject) -> None:
    """Cut anywhere, or one byte changed anywhere: it is not used, and the next one is whole."""
    vector = opened(shop, shop.dense(dense(1)))
    wanted = magnitudes_of(vector)
    whole = bytearray(kept_beside(vector).read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        spoil(kept_beside(vector), bytes(whole[:place]))
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
        spoil(kept_beside(vector), bytes(whole))
    assert magnitudes_of(vector) == wanted
    assert Magnitudes.load(kept_beside(vector), elements_of(vector)) == wanted


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(4096), os.urandom(999)])
def test_garbage_is_counted_again(shop: Workshop, data: bytes) -> None:
    vector = opened(shop, shop.dense(dense(1)))
    wanted = magnitudes_of(vector)
    spoil(kept_beside(vector), data)
    assert magnitudes_of(vector) == wanted


def test_the_file_of_another_vector_is_not_used(shop: Workshop) -> None:
    first, second = (opened(shop, shop.dense(dense(seed))) for seed in (1, 50))
    wanted = magnitudes_of(first)
    magnitudes_of(second)
    spoil(kept_beside(first), kept_beside(second).read_bytes())
    assert magnitudes_of(first) == wanted


def one(patterns: list[int], counts: list[int], exact: bool) -> Counted:
    return Counted(np.array(patterns, dtype=np.int64), np.array(counts, dtype=np.int64), exact)


ONE, TWO = 0x3F800000, 0x40000000
IMPOSSIBLE = {
    "too few": one([ONE], [3], True),
    "too many": one([ONE, TWO], [3, 2], True),
    "less than none": one([ONE, TWO], [5, -1], True),
    "falling": one([TWO, ONE], [2, 2], True),
    "twice": one([ONE, ONE], [2, 2], True),
    "negative pattern": one([-5, ONE], [2, 2], True),
    "lower bits that it did not count": one([ONE + 1], [4], False),
    "fewer counts than patterns": one([ONE, TWO], [4], True),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_histograms_are_not_used(workshop: Callable[..., Workshop], what: str) -> None:  # noqa: F811
    """Written by a program with a mistake in it: digests that fit, and arrays that do not."""
    shop = workshop({"a": torch.ones(4), "b": torch.ones(4)})
    values = {"a": torch.tensor([1.0, 1, 2, 2]), "b": torch.tensor([0.5, 1, 1.5, 2])}
    vector = opened(shop, shop.dense(values))
    right = count_magnitudes(vector)
    for name in values:
        wrong = Magnitudes({**right._counted, name: IMPOSSIBLE[what]})
        wrong.save(kept_beside(vector))
        assert Magnitudes.load(kept_beside(vector), {"a": 4, "b": 4}) is None
        assert magnitudes_of(vector) == right


@pytest.mark.parametrize("starts", [[0, 9, 2], [1, 1, 2], [0, -1, 2], [0, 2], [0, 1, 2, 2], [0, 1, 1]])
def test_arrays_cut_in_other_places_are_not_used(starts: list[int]) -> None:
    counts, exact = np.array([4, 4]), np.array([True, True])
    patterns = np.array([ONE, TWO], dtype=np.int32)
    assert _is_whole(counts, np.array([0, 1, 2]), patterns, exact, [4, 4])
    assert not _is_whole(counts, np.array(starts), patterns, exact, [4, 4])


def test_what_has_the_file_s_name_and_is_none(shop: Workshop) -> None:
    vector = opened(shop, shop.dense(dense(1)))
    kept_beside(vector).mkdir()
    assert magnitudes_of(vector) == count_magnitudes(vector)


def test_verify_finds_a_histogram_that_could_be_and_is_not(shop: Workshop) -> None:
    """What fits in every number is used, and only counting again can tell."""
    vector = opened(shop, shop.dense(dense(1)))
    right = magnitudes_of(vector)
    name = "model.layers.1.w"
    entry = right._counted[name]
    counts = entry.counts.copy()
    place = int(np.flatnonzero(counts[:-1] > 1)[0])
    counts[place : place + 2] += [-1, 1]
    Magnitudes({**right._counted, name: Counted(entry.patterns, counts, entry.exact)}).save(kept_beside(vector))
    with pytest.raises(CorruptError, match="is not the histogram of `kind@1`") as caught:
        check_magnitudes(vector, "kind@1")
    assert "remove that file" in caught.value.hint
    kept_beside(vector).unlink()
    check_magnitudes(vector, "kind@1")


def test_a_store_that_cannot_be_written_still_composes(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = shop.dense(dense(1))
    use = shop.use(vector, 0.5)
    ties = Composition(method="ties", density=0.3)
    wanted = shop.composer([use], ties).tensor("model.layers.0.w")
    path = kept_beside(opened(shop, vector))
    path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse_writing(Path.open))
        assert same_bits(shop.composer([use], ties).tensor("model.layers.0.w"), wanted)
        keep_magnitudes(opened(shop, vector), Magnitudes({}))
    assert not path.exists()


def refuse_writing(real: Callable[..., object]) -> Callable[..., object]:
    """`Path.open` of a file system that can only be read."""

    def opened_so(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        if set(mode) & set("wxa+"):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, mode, *arguments, **options)

    return opened_so


def test_verify_and_gc_by_command(
    make_checkpoint: Callable[..., Path], tmp_path: Path, persona: Callable[..., tuple[int, str, str]]
) -> None:
    """A fine-tune is counted when it is imported; `verify` reads that again; `gc` removes it after its vector."""
    base = make_checkpoint("llama")
    root = tmp_path / "repository"
    assert persona("init", "--base", str(base), str(root))[0] == 0
    assert persona("import", "kind", str(fine_tuned(base, tmp_path / "tuned")), cwd=root)[0] == 0
    repository = Repository(root)
    (manifest,) = repository.manifests()
    path = repository.vector_path(manifest.id).with_suffix(MAGNITUDES_SUFFIX)
    counts = load_file(path)["counts"]
    assert int(counts.sum()) == sum(
        tensor.numel() for tensor in load_file(repository.vector_path(manifest.id)).values()
    )
    assert persona("verify", cwd=root)[0] == 0
    vector = open_task_vector(repository, manifest.id, "kind@1")
    right = magnitudes_of(vector)
    name, entry = next((name, entry) for name, entry in right._counted.items() if len(entry.counts) > 2)
    Magnitudes({**right._counted, name: Counted(entry.patterns, entry.counts[::-1].copy(), entry.exact)}).save(path)
    code, out, err = persona("verify", cwd=root)
    assert code == 3
    assert "is not the histogram of `kind@1`" in out + err
    assert find_garbage(repository) == []
    path.with_suffix(".safetensors").unlink()
    (garbage,) = find_garbage(repository)
    assert (garbage.path, garbage.why) == (path, "the magnitudes of a vector that is gone")
    collect([garbage])
    assert not path.exists()
