"""The steering of a loaded model: one table in each decoder layer, shared rows, and who holds which slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from personality.serving.plugin.settings import DEFAULT
from personality.serving.plugin.token_rows import NOTHING, first_row, row_count, rows_of
from personality.serving.steering_table import STATES, SteeringTable

TABLE, ROWS = "persona_table", "persona_rows"
"""Buffers of each decoder layer: (1 + 3 · slots, d) in the model's dtype; int64 (most tokens of a pass,), shared."""


class ModelSteering:
    """What a model's layers add.

    Args:
        layers: decoder layers that are on this worker, by their number in the model.
        count: layers of the whole model.
        width: d, of the residual stream.
        dtype: of the residual stream.
        device: where the layers are.
        tokens: most tokens of one pass.
        slots: tables held at a time, the default one included.
        positional: whether tables may depend on a token's state.
    """

    def __init__(
        self,
        layers: dict[int, nn.Module],
        count: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        tokens: int,
        slots: int,
        positional: bool,
    ) -> None:
        self._layers, self._count, self._width = layers, count, width
        self._slots: dict[str, int] = {DEFAULT: 0}
        self._held: dict[str, SteeringTable] = {}
        self._capacity, self.positional = slots, positional
        self._rows = torch.full((tokens,), NOTHING, dtype=torch.int64, device=device)
        self._tables: dict[int, Tensor] = {}
        for number, layer in layers.items():
            table = torch.zeros(row_count(slots), width, dtype=dtype, device=device)
            # Buffers, so that a compiled graph takes them as inputs and sees what is written to them later.
            layer.register_buffer(TABLE, table, persistent=False)
            layer.register_buffer(ROWS, self._rows, persistent=False)
            layer.register_forward_hook(add_rows)
            self._tables[number] = table

    def set(self, slot: str, steering: SteeringTable) -> None:
        """Steer a slot's requests so from the next pass on.

        Raises:
            ValueError: for a table of another model, one that depends on positions where that is not allowed, or when
                all slots are taken.
        """
        if (steering.layers, steering.width) != (self._count, self._width):
            raise ValueError(
                f"the table is for {steering.layers} layers of width {steering.width}; the model has {self._count} of "
                f"width {self._width}: it was made for another base"
            )
        if steering.positional and not self.positional:
            raise ValueError(
                "the table does something else to prompts than to replies, and the server was started for steering "
                "that is the same everywhere: restart it with PERSONA_STEERING=positions"
            )
        if slot not in self._slots:
            free = set(range(self._capacity)) - set(self._slots.values())
            if not free:
                names = ", ".join(f"`{name}`" for name in sorted(self._held) if name != DEFAULT)
                raise ValueError(f"all slots are taken ({names}): clear one, or restart with a greater PERSONA_SLOTS")
            self._slots[slot] = min(free)
        begin = first_row(self._slots[slot])
        for number, table in self._tables.items():
            table[begin : begin + STATES].copy_(steering.table[number])
        self._held[slot] = steering

    def clear(self, slot: str) -> None:
        """Steer a slot's requests no more: the default slot gives the base, another one's name is given free."""
        if slot in self._slots:
            begin = first_row(self._slots[slot])
            for table in self._tables.values():
                table[begin : begin + STATES].zero_()
        self._held.pop(slot, None)
        if slot != DEFAULT:
            self._slots.pop(slot, None)

    def describe(self) -> dict[str, Any]:
        """What is held, as JSON data: `slots` by name, `layers`, `width`, `positions`, `capacity`."""
        held = {
            name: {
                "version": table.version,
                "label": table.label,
                "digest": table.digest,
                "positional": table.positional,
            }
            for name, table in sorted(self._held.items())
        }
        return {
            "slots": held,
            "layers": self._count,
            "width": self._width,
            "positions": self.positional,
            "capacity": self._capacity,
        }

    def schedule(self, names: list[str], computed: Tensor, prompts: Tensor, scheduled: Tensor) -> None:
        """Tell the layers which tokens the next pass computes.

        Args:
            names: each request's slot.
            computed, prompts, scheduled: see `rows_of`.

        Raises:
            KeyError: for a slot that nobody has set; requests are checked before they get here.
        """
        slots = torch.tensor([self._slots[name] for name in names])
        rows = rows_of(slots, computed, prompts, scheduled)
        self._rows[: len(rows)].copy_(rows)
        self._rows[len(rows) :].fill_(NOTHING)


def add_rows(layer: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a decoder layer: add each token's row.

    vLLM's layers give (hidden, residual), whose sum is what the layer computed; others give a tensor. Hidden states are
    (tokens, d), or (1, tokens, d) in models of transformers.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    rows: Tensor = getattr(layer, ROWS)[: hidden.shape[-2]]
    moved = hidden + getattr(layer, TABLE)[rows]
    return (moved, *output[1:]) if isinstance(output, tuple) else moved


def decoder_layers(model: nn.Module, count: int) -> dict[int, nn.Module]:
    """The decoder layers of a model of vLLM that are on this worker, by their number.

    Args:
        model: as loaded.
        count: layers that its configuration names.

    Raises:
        RuntimeError: when not exactly one list of so many layers is found.
    """
    # A model that sees has towers of layers beside those of its language model.
    language = getattr(model, "get_language_model", None)
    found = []
    for module in (language() if callable(language) else model).modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers) == count:
            found.append(layers)
    if len(found) != 1:
        raise RuntimeError(
            f"persona: {type(model).__name__} has {len(found)} lists of {count} decoder layers; cannot tell which to "
            "steer: serve it without the plugin"
        )
    # Layers of other workers of a pipeline are placeholders without anything in them.
    return {number: layer for number, layer in enumerate(found[0]) if type(layer).__name__ != "PPMissingLayer"}
