"""Reading directions whatever the file, by what is in it and not by what it is called."""

from __future__ import annotations

import string
from pathlib import Path

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.gguf_file import MAGIC, read_gguf
from personality.vectors.interop.imported_directions import ImportedDirections
from personality.vectors.interop.safetensors_file import read_safetensors
from personality.vectors.interop.torch_file import read_torch

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # what `torch.save` begins with, and began with before torch 1.6
_SUFFIXES = {
    ".gguf": "gguf",
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
}


def is_directions_file(path: Path) -> bool:
    """Whether a path can only mean a file of directions: a file, or the name of one that is not there."""
    return path.is_file() or (not path.is_dir() and path.suffix.lower() in _SUFFIXES)


def read_directions(path: Path, base: BaseShape, fingerprint: str, layer: int | None = None) -> ImportedDirections:
    """Read a control vector, a safetensors file or a file of `torch.save`.

    Args:
        path: the file.
        base: what the directions have to fit.
        fingerprint: the base's.
        layer: the layer of a single direction without a number.

    Raises:
        NotFoundError: when there is no such file.
        CorruptError: when it is cut off or damaged.
        IncompatibleError: when it is of another kind, or does not fit the base; see the formats' own readers.
        UsageError: for a single direction when no layer was named.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", "give a .gguf, .safetensors or .pt file of directions")
    kind = _kind(path)
    if kind == "gguf":
        return read_gguf(path, base)
    if kind == "safetensors":
        return read_safetensors(path, base, fingerprint, layer)
    return read_torch(path, base, layer)


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(MAGIC):
        return "gguf"
    if start.startswith((_ZIP, _PICKLE)):
        return "torch"
    if start[8:9] == b"{":  # after the length of the header, the header
        return "safetensors"
    promised = _SUFFIXES.get(path.suffix.lower())
    shown = "".join(chr(byte) if chr(byte) in string.printable[:95] else "·" for byte in start)
    begins = f"begins with `{shown}`" if start else "is empty"
    if promised is None:
        raise IncompatibleError(
            f"{path} {begins}: it is no file of directions", "give a .gguf, .safetensors or .pt file"
        )
    raise CorruptError(f"{path} {begins}, as no {promised} file does", "fetch or make the file again")
