"""The `directions` encoding: a steering vector in the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from personality.manifests.errors import CorruptError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorFile, TensorSpec
from personality.manifests.vector_store import open_verified, storing
from personality.vectors.steering.steering_vector import Gate, SteeringVector, check
from personality.vectors.tensors import read_tensor, tensor_bytes

ENCODING: Literal["directions"] = "directions"
_LAYER = "layer."
_GATE = "condition"


@dataclass(frozen=True)
class StoredSteering:
    """A steering vector in the store.

    Attributes:
        id: its logical digest.
        tensors: dtype and shape of each stored tensor.
        bytes: size of what is stored.
        norm: see `SteeringVector.norm`.
    """

    id: str
    tensors: dict[str, str]
    bytes: int
    norm: float


def store_steering(repository: Repository, vector: SteeringVector) -> StoredSteering:
    """Store a steering vector; where and how it acts is part of its identity.

    Raises:
        IncompatibleError: see `steering_vector.check`; nothing is stored.
    """
    header, tensors = contents(vector)
    specs = [TensorSpec(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    with storing(repository, header, specs) as stored:
        for name, tensor in tensors.items():
            stored.writer.write(name, tensor_bytes(tensor.to(torch.float32)))
    return StoredSteering(
        id=stored.id,
        tensors={spec.name: str(spec) for spec in specs},
        bytes=sum(spec.nbytes for spec in specs),
        norm=vector.norm,
    )


def contents(vector: SteeringVector) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a file of a steering vector says of itself, and its tensors.

    Raises:
        IncompatibleError: see `steering_vector.check`.
    """
    check(vector)
    tensors = {f"{_LAYER}{layer}": vector.tensors[layer] for layer in sorted(vector.tensors)}
    gate = None
    if vector.gate is not None:
        tensors[_GATE] = vector.gate.direction
        gate = {"layer": vector.gate.layer, "threshold": vector.gate.threshold, "above": vector.gate.above}
    header = {
        "kind": "steering",
        "encoding": ENCODING,
        "positions": vector.positions,
        "mode": vector.mode,
        "layers": list(vector.layers),
        "joint": vector.joint,
        "condition": gate,
    }
    return header, tensors


def open_steering(repository: Repository, vector_id: str, label: str, *, reread: bool = False) -> SteeringVector:
    """Open a stored steering vector and check that its content is what its id says.

    Args:
        repository: where.
        vector_id: its id.
        label: such as `candid@1`, for errors.
        reread: hash the file even when it has not been touched since it was last hashed.

    Raises:
        NotFoundError: when its file is missing.
        CorruptError: when it is damaged, tampered with, or no steering vector.
    """
    file, header = open_verified(repository, vector_id, label, reread=reread)
    if header.get("encoding") != ENCODING:
        raise CorruptError(
            f"`{label}` is recorded as a steering vector, its file has the encoding {header.get('encoding')!r}",
            "copy manifest and file again from where they were made",
        )
    return read_steering(file, header)


def read_steering(file: TensorFile, header: dict[str, Any]) -> SteeringVector:
    """The steering vector in an open file, copied out of it.

    Raises:
        IncompatibleError: see `steering_vector.check`.
    """
    # Copies: the vector outlives the file's mapping.
    tensors = {name: read_tensor(file, name).clone() for name in file.specs}
    gate = header["condition"]
    vector = SteeringVector(
        tensors={int(name.removeprefix(_LAYER)): tensor for name, tensor in tensors.items() if name != _GATE},
        positions=header["positions"],
        mode=header["mode"],
        layers=tuple(header["layers"]),
        joint=header["joint"],
        gate=Gate(gate["layer"], tensors[_GATE], gate["threshold"], gate["above"]) if gate else None,
    )
    check(vector)
    return vector
