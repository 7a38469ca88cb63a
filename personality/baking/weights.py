"""What a model folder is written from: tensors by name, read or made one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from personality.manifests.tensor_file import TensorSpec


class Weights(Protocol):
    """A checkpoint on disk, a composed personality, or one with steering baked in."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of every tensor, in file order."""
        ...

    @property
    def folder(self) -> Path:
        """Where configuration and tokenizer lie."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A tensor in its own dtype and shape."""
        ...

    def blocks_of(self, name: str) -> Iterator[memoryview]:
        """A tensor's bytes, whatever its dtype, piece by piece."""
        ...
