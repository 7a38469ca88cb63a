"""Control vectors in GGUF, as llama.cpp and repeng read and write them.

Tensors `direction.N`, float32 (d,); metadata `general.architecture` = `controlvector`, `controlvector.model_hint` and
`controlvector.layer_count` (the number of directions). **N is our layer number**: both programs add `direction.N` to
the output of decoder block N, blocks counted from 0, at every position (llama.cpp: `build_cvec` right after the block's
last residual addition; repeng: a wrapper around block N). llama.cpp cannot act in block 0, loads no file with a
`direction.0`, and reads none of the metadata; repeng reads and applies a `direction.0`.

llama.cpp's own generator names what it read after block N `direction.(N+1)`. Such files are taken as the loader takes
them, not as the generator meant them, for that is how they act there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personality.manifests.atomic import writing
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.imported_directions import ImportedDirections, checked

MAGIC = b"GGUF"
ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")
_NO_CONTROL_VECTOR = "give a control vector, as repeng's `export_gguf` or llama.cpp's cvector-generator writes it"
_MOST_PARTS = 10_000
"""Most fields, elements of arrays and tensors together; a control vector has one tensor per layer and a few fields."""
# What llama.cpp calls an architecture, where that is another word and not only another spelling of transformers' name.
_LLAMA_CPP_NAMES = {
    "mistral": "llama", "mixtral": "llama", "phi": "phi2", "cohere": "commandr", "gptbigcode": "starcoder",
    "deepseekv2": "deepseek2", "deepseekv3": "deepseek2",
}  # fmt: skip


def read_gguf(path: Path, base: BaseShape) -> ImportedDirections:
    """Read a control vector.

    Args:
        path: the file.
        base: what it has to fit.

    Raises:
        CorruptError: when the file is cut off or damaged.
        IncompatibleError: when it is a model or an adapter, for another model, has tensors that are no directions or
            quantized; see `checked`.
    """
    reader = _open(path)
    texts = _texts(reader)
    notes = []
    if "general.architecture" not in texts:
        notes.append("the file does not say that it is a control vector; its tensors do")
    hint = texts.get(f"{ARCHITECTURE}.model_hint", "")
    if hint and not same_model_type(hint, base.model_type):
        raise IncompatibleError(
            f"{path} was made for a `{hint}` model, the base is a `{base.model_type}` model",
            "make it on this base: `persona extract`; if only the name is wrong, mend `controlvector.model_hint` with "
            "repeng: `import_gguf`, set `model_type`, `export_gguf`",
        )
    if not hint:
        notes.append("the file does not say for which kind of model it was made")
    found = {}
    for tensor in reader.tensors:
        match = _DIRECTION.fullmatch(tensor.name)
        if match is None:
            raise IncompatibleError(
                f"{path} has a tensor `{tensor.name}`, which is no direction of a control vector",
                "give a file whose tensors are named `direction.1`, `direction.2`, …",
            )
        found[int(match[1])] = _values(tensor, path)
    if 0 in found:
        notes.append("it has a direction for layer 0, with which llama.cpp refuses it; repeng and persona apply it")
    return checked(found, base, str(path), "gguf-control-vector", notes=tuple(notes))


def _open(path: Path) -> Any:
    from gguf import GGUFReader, GGUFValueType

    class Bounded(GGUFReader):  # type: ignore[misc]  # the package's types are not followed
        """The package reads past the end as nothing, and would go on for as long as a damaged count says.

        It makes several objects of every element of an array: a model with its vocabulary would take a minute, so one
        is refused at its name, and whatever has too many parts at their number.
        """

        parts = 0

        def _count(self, offset: Any, count: Any, what: str) -> None:
            if int(offset) + int(count) > len(self.data):  # each takes a byte at least
                raise ValueError(f"it ends at {len(self.data)} bytes and is to have {int(count)} {what}")
            self.parts += int(count)
            if self.parts > _MOST_PARTS:
                raise IncompatibleError(f"{path} is no control vector: it has {int(count)} {what}", _NO_CONTROL_VECTOR)

        def _build_fields(self, offs: Any, count: Any) -> Any:
            self._count(offs, count, "metadata fields")
            return super()._build_fields(offs, count)

        def _build_tensor_info(self, offs: Any, count: Any) -> Any:
            self._count(offs, count, "tensors")
            return super()._build_tensor_info(offs, count)

        def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
            if raw_type == GGUFValueType.ARRAY:  # type of the elements, their number, the elements
                self._count(orig_offs, self._get(orig_offs + 4, np.uint64)[0], "elements in an array of its metadata")
            return super()._get_field_parts(orig_offs, raw_type)

        def _push_field(self, field: Any, skip_sum: bool = False) -> Any:
            text = _text(field) if field.name == "general.architecture" else None
            if text is not None and text != ARCHITECTURE:
                raise IncompatibleError(
                    f"{path} is a GGUF model or adapter of the architecture `{text}`, no control vector",
                    _NO_CONTROL_VECTOR,
                )
            return super()._push_field(field, skip_sum)

        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError(f"it ends at {len(self.data)} bytes, before byte {int(offset)} is whole")
            return super()._get(offset, dtype, count, override_order)

    try:
        return Bounded(path)
    except PersonaError:
        raise
    except Exception as error:  # whatever the package's parsing of a damaged file runs into
        raise CorruptError(
            f"{path} is not a whole GGUF file: {type(error).__name__}: {error}", "fetch or make the file again"
        ) from error


def _texts(reader: Any) -> dict[str, str]:
    """The metadata that is text."""
    found = {name: _text(field) for name, field in reader.fields.items()}
    return {name: text for name, text in found.items() if text is not None}


def _text(field: Any) -> str | None:
    from gguf import GGUFValueType

    return bytes(field.parts[-1]).decode(errors="replace") if field.types[:1] == [GGUFValueType.STRING] else None


def _values(tensor: Any, path: Path) -> Tensor:
    """A tensor's values, copied out of the mapped file."""
    if tensor.tensor_type.name not in ("F32", "F16"):
        raise IncompatibleError(
            f"`{tensor.name}` in {path} is {tensor.tensor_type.name}",
            "write directions as F32 (llama.cpp reads nothing else) or F16",
        )
    values: np.ndarray[Any, Any] = tensor.data
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))  # big-endian files exist


def same_model_type(hint: str, model_type: str) -> bool:
    """Whether a control vector's hint can mean this kind of model, in transformers' or in llama.cpp's words."""
    wanted, ours = _plain(hint), _plain(model_type)
    return wanted in (ours, _LLAMA_CPP_NAMES.get(ours))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removesuffix("_text"))


def write_gguf(path: Path, directions: Mapping[int, Tensor], model_type: str) -> None:
    """Write a control vector that llama.cpp and repeng load; with repeng's numbers it is repeng's file byte for byte.

    Args:
        path: the file; replaced when it exists.
        directions: (d,) by layer, in the strength that the file's readers add at scale 1; in the order given.
        model_type: for `controlvector.model_hint`.

    Raises:
        IncompatibleError: for a direction of layer 0, which llama.cpp cannot apply.
        PersonaError: when it cannot be written.
    """
    from gguf import GGUFWriter

    if 0 in directions:
        raise IncompatibleError(
            "a control vector cannot act in layer 0: llama.cpp applies none there and refuses the file",
            "leave layer 0 out, or write another format: `--to safetensors-directions`",
        )
    with writing(path) as file:
        target = Path(file.name)
        writer = GGUFWriter(target, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
        for layer, tensor in directions.items():
            writer.add_tensor(f"direction.{layer}", tensor.detach().cpu().float().contiguous().numpy())
        writer.write_header_to_file(target)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
