"""`export` of one steering vector: directions in a file that other programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from personality.composition.opening import base_of
from personality.manifests.errors import CorruptError, IncompatibleError, PersonaError
from personality.manifests.manifest import Manifest
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.vectors.interop.base_shape import BaseShape, base_shape
from personality.vectors.interop.gguf_file import write_gguf
from personality.vectors.interop.reading import read_directions
from personality.vectors.interop.safetensors_file import write_safetensors
from personality.vectors.interop.torch_file import write_persona_vectors
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.steering.steering_vector import SteeringVector, listed
from personality.versions.recipe import find_steering

VectorTarget = Literal["gguf-control-vector", "safetensors-directions", "persona-vectors"]
VECTOR_TARGETS: tuple[VectorTarget, ...] = get_args(VectorTarget)


@dataclass(frozen=True)
class ExportedVector:
    """A steering vector in a file of its own.

    Attributes:
        manifest: of the vector.
        layers: whose directions are in the file.
        bytes: size of the file.
        notes: what its reader should know.
    """

    manifest: Manifest
    layers: tuple[int, ...]
    bytes: int
    notes: tuple[str, ...]


def export_vector(
    repository: Repository, label: VectorLabel, target: VectorTarget, path: Path, *, force: bool = False
) -> ExportedVector:
    """Write a steering vector for another program and read the file back; both must give the same numbers.

    Args:
        repository: where the vector is.
        label: such as `candid@2`; without a number the behavior's newest steering vector.
        target: `gguf-control-vector` for llama.cpp and repeng: what acts at scale 1 in the vector's own layers;
            `safetensors-directions`: the whole vector, to be imported again or read by programs of one's own;
            `persona-vectors`: one tensor (L + 1, d), every layer in the strength of scale 1 in that layer alone.
        path: the file to write.
        force: replace an existing file.

    Raises:
        NotFoundError: when there is no such vector.
        UsageError: for a task vector.
        IncompatibleError: for what the target cannot carry: other modes, a condition, layer 0 or
            positions.
        PersonaError: when the file exists, or cannot be written.
    """
    manifest = find_steering(repository, label)
    if path.is_dir() or (path.exists() and not force):
        raise PersonaError(
            f"{path} is there already", "give another name" if path.is_dir() else "give another name, or `--force`"
        )
    vector = open_steering(repository, manifest.id, manifest.label)
    shape = base_shape(base_of(repository).folder)
    _check_carries(manifest, vector, target)
    written, notes = _write(vector, manifest, shape, target, path)
    _check_same(path, written, shape, manifest.base.fingerprint)
    return ExportedVector(manifest, tuple(written), path.stat().st_size, notes)


def _check_carries(manifest: Manifest, vector: SteeringVector, target: VectorTarget) -> None:
    if target == "safetensors-directions":
        return
    label = manifest.label
    hint = "write the whole vector: `--to safetensors-directions`"
    if vector.mode != "add" or vector.gate is not None:
        how = f"acts in the mode `{vector.mode}`" if vector.mode != "add" else "acts only under a condition"
        raise IncompatibleError(f"`{label}` {how}; {target} files can only be added, always", hint)
    if target == "gguf-control-vector" and vector.positions != "all":
        raise IncompatibleError(
            f"`{label}` acts at {_POSITIONS[vector.positions]}; llama.cpp and repeng add a control vector at every "
            "position, where this one was never proven to work",
            f"{hint}, or make one that acts everywhere: `persona extract {manifest.behavior} … --positions all`",
        )


_POSITIONS = {
    "all": "every position",
    "response": "the reply's positions only",
    "decision": "the last token of the prompt only",
}


def _write(
    vector: SteeringVector, manifest: Manifest, shape: BaseShape, target: VectorTarget, path: Path
) -> tuple[dict[int, Tensor], tuple[str, ...]]:
    """Write the file; returns the directions that are in it, and notes."""
    if target == "gguf-control-vector":
        acting = vector.acting()
        write_gguf(path, acting, shape.model_type)
        rest = tuple(sorted(set(vector.tensors) - set(acting)))
        return acting, (f"directions of layers {listed(rest)}, where it does not act, are left out",) if rest else ()
    if target == "safetensors-directions":
        write_safetensors(path, vector, manifest.label, manifest.base.fingerprint)
        return vector.tensors, ()
    write_persona_vectors(path, vector.tensors, shape)
    own = ", ".join(str(layer + 1) for layer in vector.layers)
    where = "" if vector.positions == "response" else f", where this one acts at {_POSITIONS[vector.positions]}"
    return vector.tensors, (
        f"layers are counted from 1 there: this vector acts in {own}",
        f"`steering_type response` acts at the reply's positions{where}",
    )


def _check_same(path: Path, written: dict[int, Tensor], shape: BaseShape, fingerprint: str) -> None:
    """Read the file as `import` does and compare."""
    found = read_directions(path, shape, fingerprint).directions
    expected = {layer: tensor for layer, tensor in written.items() if bool(tensor.any())}
    if found.keys() != expected.keys() or any(
        not torch.equal(found[layer], tensor) for layer, tensor in expected.items()
    ):
        raise CorruptError(f"{path} does not read back as it was written", "check the disk, then write it again")
