"""Steering as a server applies it: what is added after each layer to a prompt's tokens, to its last one, to a reply's.

vLLM computes the tokens of many requests in one row, so that a vector cannot act "on the reply" but only on a token
that is known to belong to one. The table has one vector for each layer and each state a token can be in; which state a
token is in is the plugin's to find out. The file is a safetensors file with one float32 tensor, `table` (layers, 3, d).

Read inside vLLM's environment: torch, safetensors and the standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from personality.manifests.atomic import write_bytes
from personality.manifests.canonical import canonical_json, digest_bytes
from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError

if TYPE_CHECKING:
    from personality.vectors.steering.injection import Injection

STEERING_FILE = "persona-steering.table"
"""Name in an export's folder; servers take every `*.safetensors` file there for weights."""
PROMPT, DECISION, REPLY = 0, 1, 2
"""States of a token: of the prompt but not its last, the prompt's last, of the reply. Rows of the table."""
STATES = 3
_STATES_OF = {"all": (PROMPT, DECISION, REPLY), "response": (DECISION, REPLY), "decision": (DECISION,)}
_KEY = "persona"


@dataclass(frozen=True)
class SteeringTable:
    """What is added after each layer.

    Attributes:
        table: float32 (layers, 3, d), rows in the order `PROMPT, DECISION, REPLY`.
        version: id of the version that steers so; empty for none.
        label: the version's label, or whatever says whose it is.
    """

    table: Tensor
    version: str = ""
    label: str = ""

    @property
    def layers(self) -> int:
        """Layers of the model it was made for."""
        return self.table.shape[0]

    @property
    def width(self) -> int:
        """Width d of the model's residual stream."""
        return self.table.shape[2]

    @property
    def positional(self) -> bool:
        """Whether it does something else to a prompt's tokens than to a reply's."""
        return not bool((self.table == self.table[:, :1]).all())

    @property
    def acts(self) -> bool:
        """Whether anything is added at all."""
        return bool(self.table.any())

    @property
    def digest(self) -> str:
        """SHA-256 of shape and numbers: two tables with the same do the same, whoever they belong to."""
        return digest_bytes(canonical_json(list(self.table.shape)) + self.table.contiguous().numpy().tobytes())


def table_of(
    injections: Sequence[Injection], layers: int, width: int, rounding: torch.dtype | None = None
) -> SteeringTable:
    """The table that does what injections do.

    Args:
        injections: what acts; those that meet in a layer and a state add up. None gives a table of zeros.
        layers: of the model.
        width: d, of its residual stream.
        rounding: round what is added to this dtype, as a model of that dtype adds it; None for not at all.

    Returns:
        Its `version` and `label` are empty: `dataclasses.replace` sets them.

    Raises:
        IncompatibleError: for modes and conditions that are not an addition, for another width or more layers.
    """
    table = torch.zeros(layers, STATES, width, dtype=torch.float64)
    # In order of label, and in float64, so that a sum does not depend on who came first.
    for item in sorted(injections, key=lambda item: (item.layer, item.label)):
        if item.mode != "add":
            raise IncompatibleError(
                f"`{item.label}` acts in mode `{item.mode}`: how much it moves a token depends on the token, and the "
                "server adds the same to each",
                "extract it again to be added (`persona extract … --mode add`), or serve the version without it",
            )
        if item.gate is not None:
            raise IncompatibleError(
                f"`{item.label}` acts under a condition, which the server does not look at",
                "extract it again without a condition, or serve the version without it",
            )
        if item.layer >= layers or item.vector.numel() != width:
            raise IncompatibleError(
                f"`{item.label}` acts after layer {item.layer} with width {item.vector.numel()}; the model has layers "
                f"0-{layers - 1} of width {width}",
                "it was made for another base: extract it on this one",
            )
        table[item.layer, list(_STATES_OF[item.positions])] += item.vector.double()
    rounded = table.to(rounding) if rounding is not None else table
    return SteeringTable(rounded.float())


def to_bytes(steering: SteeringTable) -> bytes:
    """The table as the bytes of its file; the same table gives the same bytes."""
    metadata = {_KEY: canonical_json({"version": steering.version, "label": steering.label}).decode()}
    return bytes(save_tensors({"table": steering.table.contiguous()}, metadata=metadata))


def from_bytes(data: bytes, source: str = "the steering table") -> SteeringTable:
    """Read a table.

    Args:
        data: bytes of a file.
        source: where they are from, for messages.

    Raises:
        CorruptError: when they are no whole safetensors file with such a table, or a number is not finite.
    """
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        steering = SteeringTable(tensors["table"], str(metadata["version"]), str(metadata["label"]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(source, str(error) or type(error).__name__) from error
    table = steering.table
    if len(tensors) != 1 or table.dtype != torch.float32 or table.dim() != 3 or table.shape[1] != STATES:
        raise _corrupt(source, f"it holds {len(tensors)} tensors, `table` is {table.dtype} {list(table.shape)}")
    if not bool(table.isfinite().all()):
        raise _corrupt(source, f"{int((~table.isfinite()).sum())} of its numbers are not finite")
    return steering


def save(steering: SteeringTable, path: Path) -> None:
    """Write a table's file, whole or not at all."""
    write_bytes(path, to_bytes(steering))


def load(path: Path) -> SteeringTable:
    """Read a table's file.

    Raises:
        NotFoundError: when there is none.
        CorruptError: see `from_bytes`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", "export the version with `--steering plugin`") from None
    return from_bytes(data, str(path))


def _corrupt(source: str, why: str) -> CorruptError:
    return CorruptError(f"{source} cannot be used: {why}", "export the version again")
