"""A model's weights on disk, read lazily: one safetensors file or many, with or without an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.manifests.names import inside
from personality.manifests.tensor_file import TensorFile, TensorSpec

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """Tensors of a model folder, by name, in file order.

    Args:
        folder: a Hugging Face model folder.

    Attributes:
        specs: dtype and shape of every tensor.
        files: the safetensors files, in the order of their names.

    Raises:
        NotFoundError: when there is no such folder, or no weights in it, or a shard is missing.
        CorruptError: when a file is damaged, or index and files disagree.
        IncompatibleError: when there are only pickled weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            what = "is a file; give the folder that it lies in" if folder.is_file() else "is not there"
            raise NotFoundError(
                f"the model folder {folder} {what}", "give a folder with config.json and .safetensors files"
            )
        wanted = self._index()
        paths = self._paths(wanted)
        self.files = [TensorFile(path) for path in paths]
        self.specs: dict[str, TensorSpec] = {}
        self._home: dict[str, TensorFile] = {}
        for file in self.files:
            for name, spec in file.specs.items():
                if name in self._home:
                    raise CorruptError(
                        f"tensor `{name}` is both in {self._home[name].path.name} and in {file.path.name} of {folder}",
                        "remove the files that do not belong to the model",
                    )
                self.specs[name] = spec
                self._home[name] = file
        if wanted is not None:
            self._compare(wanted)

    def _index(self) -> Mapping[str, str] | None:
        path = self.folder / INDEX
        if not path.is_file():
            return None
        try:
            found: Any = json.loads(path.read_bytes())["weight_map"]
            return {str(name): str(file) for name, file in found.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptError(f"{path} is not a valid index: {error!r}", "fetch the model again") from error

    def _paths(self, wanted: Mapping[str, str] | None) -> list[Path]:
        if wanted is not None:
            if (self.folder / SINGLE).is_file() and SINGLE not in wanted.values():
                raise CorruptError(
                    f"{self.folder} has both {SINGLE} and {INDEX} for other files: programs differ in which they load",
                    "remove the ones that do not belong to the model",
                )
            paths = [self._shard(name) for name in sorted(set(wanted.values()))]
        elif (self.folder / SINGLE).is_file():
            paths = [self.folder / SINGLE]
        else:
            paths = sorted(self.folder.glob("*.safetensors"))
        if paths:
            return paths
        pickles = [path.name for pattern in _PICKLES for path in self.folder.glob(pattern)]
        if pickles:
            raise IncompatibleError(
                f"{self.folder} has only pickled weights ({', '.join(sorted(pickles)[:3])}); "
                "unpickling runs code, so they are not opened",
                "convert them where you trust them: load with transformers and `save_pretrained` writes safetensors",
            )
        raise NotFoundError(f"there are no .safetensors files in {self.folder}", "give a Hugging Face model folder")

    def _shard(self, name: str) -> Path:
        """A file that the index names, which must be one of the model's own."""
        if self.folder.parent.name != "snapshots":
            return inside(self.folder, name)
        # In the hub's cache the files of a snapshot are links to `blobs`, two folders up.
        model = self.folder.parent.parent
        return inside(model, f"snapshots/{self.folder.name}/{name}")

    def _compare(self, wanted: Mapping[str, str]) -> None:
        missing = sorted(set(wanted) - set(self.specs))
        extra = sorted(set(self.specs) - set(wanted))
        if missing or extra:
            raise CorruptError(
                f"the index of {self.folder} and its files disagree: "
                f"{listing(missing)} only in the index, {listing(extra)} only in the files",
                "fetch the model again",
            )

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, memory-mapped."""
        # Names and shapes are read without torch, so that `persona add` stays quick.
        from personality.vectors.tensors import read_tensor

        return read_tensor(self._home[name], name)

    def bytes_of(self, name: str) -> memoryview:
        """A tensor's bytes, memory-mapped."""
        return self._home[name].bytes_of(name)

    def file_of(self, name: str) -> TensorFile:
        """The file that a tensor lies in."""
        return self._home[name]

    def blocks_of(self, name: str) -> Iterator[memoryview]:
        """A tensor's bytes, piece by piece, memory-mapped."""
        return self._home[name].blocks_of(name)

    def digest_of(self, name: str) -> str:
        """SHA-256 of a tensor's bytes."""
        return self._home[name].digest_of(name)


def listing(names: list[str]) -> str:
    """A few of many names, for an error: `3 tensors (a, b, …)`."""
    shown = ", ".join(f"`{name}`" for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}" + (f" ({shown})" if names else "")
