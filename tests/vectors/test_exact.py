from __future__ import annotations

import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.manifests.repository import Repository
from personality.vectors import encoders, exact, frames
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import DTYPE_NAMES, INTEGERS
from personality.vectors.encoding import Encoding
from personality.vectors.exact import ExactVector
from personality.vectors.fine_tune import FineTune
from personality.vectors.task_vector import TaskVector, open_task_vector
from personality.vectors.tensors import matrix_shape
from tests.composition.conftest import random_tensor, store
from tests.vectors.encoded import DTYPES, checkpoint, encode, floats, same_bits, shapes, whole

EXACT = Encoding("exact")


def restored(vector: ExactVector, name: str) -> Tensor:
    return vector.restored_rows(name, 0, matrix_shape(vector.shapes[name])[0]).reshape(vector.shapes[name])


def stored(root: Path, base: dict[str, Tensor], tuned: dict[str, Tensor]) -> tuple[ExactVector, Checkpoint]:
    old, new = checkpoint(root / "base", base), checkpoint(root / "tuned", tuned)
    _, vector = encode(Repository(root / "repository"), old, FineTune(old, new), EXACT)
    assert isinstance(vector, ExactVector)
    return vector, old


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), shape=shapes(), chunk=st.sampled_from([1, 3, 7, 16, 1 << 17]))
def test_any_bits_come_back(data: st.DataObject, dtype: torch.dtype, shape: tuple[int, ...], chunk: int) -> None:
    size = math.prod(shape)
    base = data.draw(floats(dtype, size)).reshape(shape)
    tuned = data.draw(floats(dtype, size)).reshape(shape)
    same = torch.ones(3, dtype=dtype)
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        for module in (encoders, exact):
            patch.setattr(module, "CHUNK_ELEMENTS", chunk)
        if same_bits(base, tuned):
            with pytest.raises(IncompatibleError, match="holds exactly the base's weights"):
                stored(Path(root), {"w": base, "same": same}, {"w": tuned, "same": same})
            return
        vector, _ = stored(Path(root), {"w": base, "same": same}, {"w": tuned, "same": same})
        assert list(vector.shapes) == ["w"]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        wanted = (tuned.to(wide) - base.to(wide)).reshape(matrix_shape(shape))
        assert same_bits(restored(vector, "w"), tuned)
        rows = len(wanted)
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows))
        for first, last in ((start, stop), (0, rows)):
            assert same_bits(vector.rows("w", first, last), wanted[first:last])
            part = tuned.reshape(matrix_shape(shape))[first:last]
            assert same_bits(vector.restored_rows("w", first, last), part)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_bits_order_as_floats_do(dtype: torch.dtype, data: st.DataObject) -> None:
    values = data.draw(floats(dtype, 200))
    integers = exact.ordered(values)
    order = np.argsort(integers, kind="stable")
    assert bool((torch.diff(values.double()[torch.from_numpy(order)]) >= 0).all())
    zeros = exact.ordered(torch.tensor([0.0, -0.0], dtype=dtype))
    assert zeros.tolist() == [0, -1]
    after = torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0]))
    assert exact.ordered(after)[0] - exact.ordered(torch.tensor([1.0]))[0] == 1


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1))
def test_zigzag_is_protocol_buffers(values: list[int]) -> None:
    given_ = np.array(values, np.int16)
    found = exact.zigzag(given_)
    assert found.tolist() == [2 * value if value >= 0 else -2 * value - 1 for value in values]
    assert exact.unzigzag(found).tolist() == values


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.float64, torch.bfloat16),
        (torch.float16, torch.float64),
    ],
)
def test_a_fine_tune_of_another_dtype(tmp_path: Path, old: torch.dtype, new: torch.dtype) -> None:
    base = random_tensor((6, 5), 1).to(old)
    tuned = (base.double() * 1.01 + 0.125).to(new)
    vector, _ = stored(tmp_path, {"w": base}, {"w": tuned})
    assert same_bits(vector.tuned_rows("w", 0, 6), tuned)
    assert same_bits(vector.restored_rows("w", 0, 6), tuned.to(old))
    wide = torch.float64 if old == torch.float64 else torch.float32
    assert same_bits(vector.rows("w", 0, 6), tuned.to(wide) - base.to(wide))


def test_the_same_values_in_another_dtype_are_no_change(tmp_path: Path) -> None:
    base = {"w": random_tensor((6, 5), 1, dtype=torch.bfloat16), "v": torch.ones(4, dtype=torch.bfloat16)}
    tuned = {"w": base["w"].float() + 1, "v": base["v"].float()}
    vector, _ = stored(tmp_path, base, tuned)
    assert list(vector.shapes) == ["w"]


def test_base_rounded_by_the_fine_tune_is_a_change(tmp_path: Path) -> None:
    """What is predicted of a narrower dtype is the rounded base, and that is not the base."""
    base = {"w": random_tensor((6, 5), 1)}
    vector, _ = stored(tmp_path, base, {"w": base["w"].bfloat16()})
    assert same_bits(whole(vector, "w"), base["w"].bfloat16().float() - base["w"])


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, side: str, value: float) -> None:
    tensors = {"base": torch.ones(2, 3), "tuned": torch.zeros(2, 3)}
    tensors[side][1, 2] = value
    with pytest.raises(IncompatibleError, match="`w` has 1 NaN or infinite values"):
        stored(tmp_path, {"w": tensors["base"]}, {"w": tensors["tuned"]})
    assert not list((tmp_path / "repository").rglob("*.safetensors"))


def test_a_small_change_takes_little_room(tmp_path: Path) -> None:
    """Weights of a normal distribution that moved by at most one unit in the last place: about a sixth at 2 bits."""
    base = random_tensor((1000, 700), 1, 0.02, torch.bfloat16)
    generator = torch.Generator().manual_seed(2)
    moved = torch.randint(-1, 2, base.shape, generator=generator).to(torch.int16)
    tuned = (base.view(torch.int16) + moved).view(torch.bfloat16)
    vector, _ = stored(tmp_path, {"w": base}, {"w": tuned})
    assert vector.specs["w"].nbytes < base.nbytes / 6
    assert same_bits(vector.restored_rows("w", 0, 1000), tuned)


def test_rows_need_the_base_and_the_right_one(tmp_path: Path) -> None:
    vector, _ = stored(tmp_path, {"w": torch.zeros(4, 3)}, {"w": torch.ones(4, 3)})
    repository = Repository(tmp_path / "repository")
    (path,) = (tmp_path / "repository").rglob("*.safetensors")
    with pytest.raises(ValueError, match="read with its base"):
        open_task_vector(repository, path.stem, "x@1").rows("w", 0, 1)
    for number, tensor in enumerate((torch.zeros(3, 4), torch.full((4, 3), 1e-30))):
        other = checkpoint(tmp_path / f"other-{number}", {"w": tensor})
        with pytest.raises(IncompatibleError, match="`x@1` holds changes of weights with the digest") as caught:
            open_task_vector(repository, path.stem, "x@1", base=other)
        assert "persona show x@1" in caught.value.hint
    again = checkpoint(tmp_path / "again", {"w": torch.zeros(4, 3)})
    assert same_bits(open_task_vector(repository, path.stem, "x@1", base=again).rows("w", 0, 4), torch.ones(4, 3))
    assert vector.shapes == {"w": (4, 3)}


def test_several_threads_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (encoders, exact):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1000)
    names = [f"w{i}" for i in range(4)]
    base = {name: random_tensor((300, 70), i) for i, name in enumerate(names)}
    tuned = {name: tensor + random_tensor((300, 70), 50, 1e-3) for name, tensor in base.items()}
    vector, _ = stored(tmp_path, base, tuned)
    jobs = [(name, start) for start in range(0, 300, 10) for name in names] * 3
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda job: (job, vector.rows(job[0], job[1], job[1] + 10)), jobs)
        for (name, start), part in parts:
            assert same_bits(part, (tuned[name] - base[name])[start : start + 10])


def test_what_is_read_may_be_written_to(tmp_path: Path) -> None:
    vector, base = stored(tmp_path, {"w": torch.zeros(4, 3)}, {"w": torch.ones(4, 3)})
    for read in (vector.rows, vector.restored_rows, vector.tuned_rows):
        read("w", 0, 4).mul_(7)
        assert same_bits(read("w", 0, 4), torch.ones(4, 3))
    assert not bool(base.tensor("w").any())


def test_only_the_chunks_asked_for_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (encoders, exact):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 100)
    base = random_tensor((1000, 10), 1)
    vector, _ = stored(tmp_path, {"w": base}, {"w": base + 1e-3})
    decoded = set()
    plain = frames.Frames.read

    def watched(self: frames.Frames, index: int, stream: int, length: int, *, shorter: bool = False) -> object:
        decoded.add(index)
        return plain(self, index, stream, length, shorter=shorter)

    monkeypatch.setattr(frames.Frames, "read", watched)
    vector.rows("w", 205, 218)
    assert decoded == {20, 21}


def test_names_of_integers_cover_every_dtype() -> None:
    assert {DTYPE_NAMES[dtype] for dtype in DTYPES} == set(INTEGERS)


def dense(root: Path, base: dict[str, Tensor], change: dict[str, Tensor]) -> tuple[Repository, Checkpoint, TaskVector]:
    """A dense vector that no checkpoint was the source of."""
    repository, old = Repository(root / "repository"), checkpoint(root / "base", base)
    return repository, old, open_task_vector(repository, store(repository, change), "x@1", base=old)


def test_what_rounding_takes_is_told(tmp_path: Path) -> None:
    """1 + 2⁻¹² is 1 in bfloat16: a tensor of such changes is gone, and counts as lost whole."""
    base = {"w": torch.ones(4, 3, dtype=torch.bfloat16), "v": torch.ones(5, dtype=torch.bfloat16)}
    change = {"w": torch.full((4, 3), 2.0**-12), "v": torch.full((5,), 0.5)}
    repository, old, source = dense(tmp_path, base, change)
    task, vector = encode(repository, old, source, EXACT)
    assert list(vector.shapes) == ["v"]
    assert same_bits(whole(vector, "v"), change["v"])
    assert task.residual is not None
    assert task.residual.tensors == {"w": 1.0}
    assert task.residual.whole == pytest.approx((12 * 2.0**-24 / (12 * 2.0**-24 + 5 * 0.25)) ** 0.5)


def test_a_vector_that_rounding_takes_whole_is_refused(tmp_path: Path) -> None:
    base = {"w": torch.ones(4, 3, dtype=torch.bfloat16)}
    repository, old, source = dense(tmp_path, base, {"w": torch.full((4, 3), 2.0**-12)})
    with pytest.raises(IncompatibleError, match="changes no weight") as caught:
        encode(repository, old, source, EXACT)
    assert "delta" in caught.value.hint


def test_a_vector_that_overflows_at_scale_one_is_refused(tmp_path: Path) -> None:
    base = {"w": torch.full((4, 3), 3e38)}
    repository, old, source = dense(tmp_path, base, {"w": torch.full((4, 3), 3e38)})
    with pytest.raises(IncompatibleError, match="`w` plus its change has NaN or infinite values in F32"):
        encode(repository, old, source, EXACT)
    assert len(list(repository.root.rglob("*.safetensors"))) == 1


def test_signs_of_zeros_stay_where_nothing_changes(tmp_path: Path) -> None:
    base = {"w": torch.tensor([-0.0, 0.0, -0.0, 1.0], dtype=torch.bfloat16)}
    repository, old, source = dense(tmp_path, base, {"w": torch.tensor([0.0, -0.0, -0.0, 1.0])})
    _, vector = encode(repository, old, source, EXACT)
    assert isinstance(vector, ExactVector)
    wanted = torch.tensor([-0.0, 0.0, -0.0, 2.0], dtype=torch.bfloat16)
    assert same_bits(restored(vector, "w"), wanted)
