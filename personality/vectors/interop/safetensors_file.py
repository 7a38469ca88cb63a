"""Directions in safetensors files: this program's own layout, and plain ones.

Own: tensors `layer.N` as in the store, and in the one metadata key what the store keeps too (positions, mode, layers,
condition), with the label and the base's fingerprint beside it. Importing it gives the very vector that was written.
Plain: see `numbering.numbered`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, get_args

from personality.manifests.atomic import writing
from personality.manifests.canonical import short
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.manifests.steering_record import Mode, Positions
from personality.manifests.tensor_file import METADATA_KEY, TensorFile, TensorSpec, TensorWriter
from personality.manifests.vector_store import FORMAT, read_header
from personality.vectors.interop.base_shape import BaseShape
from personality.vectors.interop.imported_directions import ImportedDirections, checked
from personality.vectors.interop.numbering import directions
from personality.vectors.steering.steering_file import ENCODING, contents, read_steering
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.tensors import read_tensor, tensor_bytes

_NAME = re.compile(r"layer\.(?:0|[1-9][0-9]{0,5})")


def read_safetensors(path: Path, base: BaseShape, fingerprint: str, layer: int | None = None) -> ImportedDirections:
    """Read directions from a safetensors file.

    Args:
        path: the file.
        base: what it has to fit.
        fingerprint: the base's.
        layer: the layer of a single direction without a number.

    Raises:
        CorruptError: when the file is cut off or damaged.
        IncompatibleError: for another base, a task vector, a model, other dtypes; see `numbered` and `checked`.
        UsageError: for a single direction when no layer was named.
    """
    file = TensorFile(path)
    if METADATA_KEY in file.metadata:
        return _own(file, base, fingerprint)
    for name, spec in file.specs.items():
        if spec.dtype not in ("F32", "F16", "BF16", "F64"):
            raise IncompatibleError(
                f"`{name}` in {path} is {spec.dtype}", "save dense float32, float16 or bfloat16 values"
            )
    tensors = {name: read_tensor(file, name) for name in file.specs}
    return directions(tensors, base, str(path), layer, "safetensors")


def _own(file: TensorFile, base: BaseShape, fingerprint: str) -> ImportedDirections:
    header = read_header(file, f"`{file.path.name}`")
    if header.get("kind") != "steering":
        raise IncompatibleError(
            f"{file.path} is a {header.get('kind')} vector of this program, no steering vector",
            "copy it with its manifest into the repository's `vectors` and `manifests`",
        )
    try:
        origin = header.get("origin") or {"base": fingerprint}  # a file out of the store says nothing of its base
        if origin["base"] != fingerprint:
            raise IncompatibleError(
                f"{file.path}, written from `{origin['label']}`, was made for a base with the fingerprint "
                f"{short(origin['base'])}, this repository's has {short(fingerprint)}",
                "extract it on this base: `persona extract`",
            )
        _check_header(file, header)
        vector = read_steering(file, header)
    except PersonaError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptError(
            f"{file.path} does not say how it acts: {type(error).__name__}: {error}", "write it again: `persona export`"
        ) from error
    if vector.gate is not None:
        checked({vector.gate.layer: vector.gate.direction}, base, f"the condition of {file.path}", "safetensors")
    found = checked(vector.tensors, base, str(file.path), "safetensors")
    return ImportedDirections(found.directions, "safetensors", vector.positions, idle=found.idle, vector=vector)


def _check_header(file: TensorFile, header: dict[str, Any]) -> None:
    """Refuse what this program would not have written.

    Raises:
        KeyError, TypeError, ValueError: naming it.
    """
    if header["encoding"] != ENCODING:
        raise ValueError(f"encoding {header['encoding']!r}, not {ENCODING!r}")
    if header["positions"] not in get_args(Positions) or header["mode"] not in get_args(Mode):
        raise ValueError(f"positions {header['positions']!r}, mode {header['mode']!r}")
    if not _is_number(header["joint"]):
        raise ValueError(f"joint {header['joint']!r}")
    layers, condition = header["layers"], header["condition"]
    if not isinstance(layers, list) or not layers or not all(type(layer) is int for layer in layers):
        raise ValueError(f"layers {layers!r}, not a list of numbers")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers {layers}, some of them twice")
    names = {name for name in file.specs if _NAME.fullmatch(name)}
    absent = [layer for layer in layers if f"layer.{layer}" not in names]
    if absent:
        raise ValueError(f"layers {layers}, without a tensor `layer.{absent[0]}`")
    others = sorted({*file.specs} - names - ({"condition"} if condition is not None else set()))
    if others:
        raise ValueError(f"a tensor `{others[0]}`")
    if condition is not None:
        _check_condition(file, condition)


def _check_condition(file: TensorFile, condition: Any) -> None:
    if not isinstance(condition, dict) or condition.keys() != {"layer", "threshold", "above"}:
        raise ValueError(f"condition {condition!r}, not layer, threshold and above")
    if (
        type(condition["layer"]) is not int
        or condition["layer"] < 0
        or not _is_number(condition["threshold"])
        or not isinstance(condition["above"], bool)
    ):
        raise ValueError(f"condition {condition!r}")
    if "condition" not in file.specs:
        raise ValueError(f"condition {condition!r}, without a tensor `condition`")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def write_safetensors(path: Path, vector: SteeringVector, label: str, fingerprint: str) -> None:
    """Write a steering vector in this program's own layout; the same vector gives the same bytes.

    Args:
        path: the file; replaced when it exists.
        vector: what to write.
        label: such as `candid@1`, for whoever finds the file.
        fingerprint: of the base that it was made for.

    Raises:
        PersonaError: when it cannot be written.
    """
    header, tensors = contents(vector)
    header = {"format": FORMAT, **header, "origin": {"label": label, "base": fingerprint}}
    specs = [TensorSpec(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    with writing(path) as file:
        writer = TensorWriter(file, specs, header)
        for name, tensor in tensors.items():
            writer.write(name, tensor_bytes(tensor.float()))
        writer.finish()
