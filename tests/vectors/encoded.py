"""What the tests of the encodings share: bases of given tensors, vectors stored and opened, hostile floats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from personality.making.reencoding import trim_limit
from personality.manifests.repository import Repository
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import DTYPE_NAMES, INTEGERS
from personality.vectors.encoding import Encoding, store_encoded
from personality.vectors.stored import StoredTask
from personality.vectors.task_vector import TaskVector, open_task_vector
from personality.vectors.tensors import matrix_shape

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def checkpoint(folder: Path, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Tensors as a model folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return Checkpoint(folder)


def encode(
    repository: Repository, base: Checkpoint, source: TaskVector, encoding: Encoding
) -> tuple[StoredTask, TaskVector]:
    """Store a vector in an encoding, and open it."""
    stored = store_encoded(repository, base, source, encoding, limit=trim_limit(source, encoding))
    return stored, open_task_vector(repository, stored.id, "x@1", base=base, reread=True)


def whole(vector: TaskVector, name: str) -> Tensor:
    """A tensor's difference, in its own shape."""
    return vector.rows(name, 0, matrix_shape(vector.shapes[name])[0]).reshape(vector.shapes[name])


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Also the signs of zeros."""
    bits = INTEGERS[DTYPE_NAMES[first.dtype]]
    return first.dtype == second.dtype and torch.equal(first.contiguous().view(bits), second.contiguous().view(bits))


@st.composite
def floats(draw: st.DrawFn, dtype: torch.dtype, size: int) -> Tensor:
    """Finite numbers of any bits, (size,), many of them ±0, subnormal, largest or smallest."""
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    width = torch.finfo(dtype).bits
    bits = torch.randint(-(2**62), 2**62, (size,), generator=generator) << 2
    bits >>= 64 - width
    found = bits.to(INTEGERS[DTYPE_NAMES[dtype]]).view(dtype)
    info = torch.finfo(dtype)
    special = torch.tensor([0.0, -0.0, info.tiny, -info.tiny, info.max / 4, -info.max / 4, 1.0], dtype=dtype)
    smallest = torch.tensor([1, 2, -(2 ** (width - 1)) + 1]).to(INTEGERS[DTYPE_NAMES[dtype]]).view(dtype)
    special = torch.cat([special, smallest])
    chosen = special[torch.randint(0, len(special), (size,), generator=generator)]
    # Two finite numbers of this size have a finite difference.
    usual = torch.isfinite(found) & (found.abs() <= info.max / 4)
    keep = usual & (torch.rand(size, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.9])))
    return torch.where(keep, found, chosen)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Of 0 to 3 dimensions, some of size 0."""
    return tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
