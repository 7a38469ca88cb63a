from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from personality.manifests.repository import Repository
from personality.vectors import encoders, sparse
from personality.vectors.encoding import Encoding
from personality.vectors.fine_tune import FineTune
from personality.vectors.positions import steps
from personality.vectors.task_vector import TaskVector
from personality.vectors.tensors import matrix_shape
from tests.composition.conftest import random_tensor
from tests.vectors.encoded import DTYPES, checkpoint, encode, floats, same_bits, shapes, whole


def stored(
    root: Path, base: dict[str, Tensor], tuned: dict[str, Tensor], encoding: Encoding
) -> tuple[TaskVector, FineTune, float]:
    old, new = checkpoint(root / "base", base), checkpoint(root / "tuned", tuned)
    source = FineTune(old, new)
    task, vector = encode(Repository(root / "repository"), old, source, encoding)
    assert task.residual is not None
    return vector, source, task.residual.whole


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    shape=shapes(),
    chunk=st.sampled_from([1, 3, 7, 16, 1 << 17]),
    density=st.sampled_from([0.01, 0.2, 0.5, 1.0]),
)
def test_what_survives_is_what_it_was(
    data: st.DataObject, dtype: torch.dtype, shape: tuple[int, ...], chunk: int, density: float
) -> None:
    base = torch.zeros(shape, dtype=dtype)
    tuned = data.draw(floats(dtype, math.prod(shape))).reshape(shape)
    tuned[tuned.abs() > 1e100] = 1  # whose squares no float64 holds, so that no norm could be told
    more = torch.ones(3, dtype=dtype)
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        for module in (encoders, sparse):
            patch.setattr(module, "CHUNK_ELEMENTS", chunk)
        encoding = Encoding("sparse", density=density, trim_scope="tensor")
        vector, source, _ = stored(Path(root), {"w": base, "more": more}, {"w": tuned, "more": 2 * more}, encoding)
        assert vector.shapes == source.shapes
        for name in vector.shapes:
            wanted, found = whole(source, name), whole(vector, name).to(whole(source, name).dtype)
            kept = found != 0
            assert torch.equal(found[kept], wanted[kept])
            # Every oracle sorts: the k-th largest magnitude, in float32, is the least that is kept.
            magnitudes = wanted.float().abs().reshape(-1).sort(descending=True).values
            least = magnitudes[max(1, int(density * len(magnitudes))) - 1]
            assert torch.equal(kept, (wanted.abs() >= least) & (wanted != 0))
            rows = matrix_shape(vector.shapes[name])[0]
            start = data.draw(st.integers(0, rows))
            stop = data.draw(st.integers(start, rows))
            part = whole(vector, name).reshape(matrix_shape(vector.shapes[name]))[start:stop]
            assert same_bits(vector.rows(name, start, stop), part)


@settings(max_examples=60, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=1, max_size=2000), spread=st.sampled_from([1, 3, 260, 600]))
def test_steps_are_places(mask: list[bool], spread: int) -> None:
    there = np.zeros(len(mask) * spread, np.bool_)
    there[::spread] = mask
    found = steps(there)
    at, places = -1, []
    for step in found.tolist():
        at += step or 255
        if step:
            places.append(at)
    assert places == np.flatnonzero(there).tolist()


def test_one_threshold_for_the_whole_vector(tmp_path: Path) -> None:
    """TIES's trim counts every element of every tensor that the vector changes, those that stay 0 too."""
    small, large = random_tensor((20, 30), 1, 0.1), random_tensor((40, 10), 2, 10.0)
    base = {"small": torch.zeros(20, 30), "large": torch.zeros(40, 10)}
    vector, _, lost = stored(tmp_path, base, {"small": small, "large": large}, Encoding("sparse", density=0.25))
    everything = torch.cat([small.reshape(-1), large.reshape(-1)])
    least = everything.abs().sort(descending=True).values[250 - 1]
    assert torch.equal(whole(vector, "large"), torch.where(large.abs() >= least, large, 0))
    assert not bool(whole(vector, "small").any())
    assert vector.shapes.keys() == base.keys()  # nothing survived in one of them, and it still counts
    kept = everything[everything.abs() >= least].norm()
    assert lost == pytest.approx(float((everything.norm() ** 2 - kept**2).sqrt() / everything.norm()), rel=1e-5)


def test_values_take_sixteen_bits_where_that_is_exact(tmp_path: Path) -> None:
    base = {"half": torch.zeros(100, 40), "single": torch.zeros(100, 40)}
    half = random_tensor((100, 40), 1, dtype=torch.bfloat16).float()
    tuned = {"half": half, "single": random_tensor((100, 40), 2)}
    vector, _, _ = stored(tmp_path, base, tuned, Encoding("sparse", density=0.3))
    assert whole(vector, "half").dtype == torch.bfloat16
    assert whole(vector, "single").dtype == torch.float32


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2])
def test_room_for_positions_is_near_the_entropy(tmp_path: Path, density: float) -> None:
    """Values of one bit pattern take no room, so that what is left is where they are."""
    generator = torch.Generator().manual_seed(1)
    there = torch.rand((1000, 1000), generator=generator) < density
    tuned = torch.where(there, 1.0, 0.0)
    vector, _, lost = stored(tmp_path, {"w": torch.zeros(1000, 1000)}, {"w": tuned}, Encoding("sparse", density=1.0))
    assert lost == 0
    assert torch.equal(whole(vector, "w").float(), tuned)
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    assert vector.specs["w"].nbytes * 8 < 1.35 * entropy * 1e6


def test_again_at_its_own_density_nothing_is_lost(tmp_path: Path) -> None:
    base = {"v": torch.zeros(50), "w": torch.zeros(40, 30)}
    tuned = {"v": random_tensor((50,), 1), "w": random_tensor((40, 30), 2)}
    vector, source, _ = stored(tmp_path, base, tuned, Encoding("sparse", density=0.2))
    old = checkpoint(tmp_path / "again", base)
    for density in (0.2, 0.5):
        task, again = encode(Repository(tmp_path / "repository"), old, vector, Encoding("sparse", density=density))
        assert task.residual is not None
        assert task.residual.whole == 0
        assert task.residual.tensors == {}
        assert all(torch.equal(whole(again, name), whole(vector, name)) for name in source.shapes)
    task, _ = encode(Repository(tmp_path / "repository"), old, vector, Encoding("sparse", density=0.1))
    assert task.residual is not None
    assert task.residual.whole > 0
