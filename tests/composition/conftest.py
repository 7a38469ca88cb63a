"""Small bases and vectors made of given tensors, stored and opened as real ones are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import Composition, LayerRange, Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec, aligned_order
from personality.manifests.vector_store import storing
from personality.vectors import delta, low_rank
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import TORCH_DTYPES
from personality.vectors.task_vector import open_task_vector
from personality.vectors.tensors import tensor_bytes


def _dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in TORCH_DTYPES.items() if known == dtype)


NAMES = ("aged", "brisk", "calm", "dry", "eager")


def store(repository: Repository, tensors: Mapping[str, Tensor], header: dict[str, object] | None = None) -> str:
    """Store a vector; returns its id."""
    specs: list[TensorSpec] = aligned_order(
        [TensorSpec(name, _dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    )
    with storing(repository, header or delta.header(), specs) as stored:
        for spec in specs:
            stored.writer.write(spec.name, tensor_bytes(tensors[spec.name]))
    return stored.id


class Workshop:
    """A base on disk and vectors on it.

    Args:
        root: an empty folder.
        base: the base's tensors.
    """

    def __init__(self, root: Path, base: Mapping[str, Tensor]) -> None:
        self.repository = Repository(root / "repository")
        self.folder = root / "base"
        self.folder.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in base.items()}, self.folder / "model.safetensors")
        self.base = Checkpoint(self.folder)
        self._known: list[str] = []

    def dense(self, tensors: Mapping[str, Tensor]) -> str:
        """Store a dense vector."""
        return store(self.repository, tensors)

    def low_rank(self, factors: Mapping[str, tuple[Tensor, Tensor, float]]) -> str:
        """Store a low-rank vector: A, B and scaling by base tensor."""
        tensors = {}
        for name, (a, b, _) in factors.items():
            tensors[name + low_rank.SUFFIX_A] = a
            tensors[name + low_rank.SUFFIX_B] = b
        header = low_rank.header({name: entry[2] for name, entry in factors.items()}, [])
        return store(self.repository, tensors, header)

    def use(
        self,
        vector: str,
        scale: float,
        *,
        behavior: str = "",
        layers: LayerRange | None = None,
        density: float | None = None,
    ) -> Use:
        """A use of a stored vector, of a behavior of its own."""
        if vector not in self._known:
            self._known.append(vector)
        name = behavior or NAMES[self._known.index(vector)]
        return Use(behavior=name, number=1, vector=vector, scale=scale, layers=layers, density=density)

    def composer(self, uses: Sequence[Use], composition: Composition | None = None) -> Composer:
        """A composer of these uses."""
        personality = Personality(
            base=BaseIdentity(source="base", fingerprint="0" * 64),
            composition=composition or Composition(),
            uses=tuple(sorted(uses, key=lambda use: use.behavior)),
        )
        vectors = {
            use.vector: open_task_vector(self.repository, use.vector, use.label, reread=True, base=self.base)
            for use in uses
            if use.scale
        }
        return Composer(self.base, personality, vectors)


@pytest.fixture
def workshop(tmp_path: Path) -> Callable[[Mapping[str, Tensor]], Workshop]:
    """`workshop({"w": tensor})` puts a base on disk; each call has a folder of its own."""
    count = 0

    def make(base: Mapping[str, Tensor]) -> Workshop:
        nonlocal count
        count += 1
        return Workshop(tmp_path / f"workshop-{count}", base)

    return make


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit, the sign of zero included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return bool(tensor_bytes(first) == tensor_bytes(second))


def random_tensor(shape: tuple[int, ...], seed: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers times `size`."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
