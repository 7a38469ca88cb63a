"""A context's key/value cache and recurrent states that answers are read on top of, and that nothing changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from personality.manifests.errors import UsageError

_KNOWN = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)


class FrozenCache(Cache):  # type: ignore[misc]
    """What a prefill left behind, for reading only.

    transformers' own caches write each new state over the last. The backward pass of a Gated-DeltaNet layer needs
    the state that was there before, so it fails; here every `update_*` returns what a writing cache would return
    and stores nothing. Keys and values are joined to the new ones anyway, so their rows are picked only then: one
    copy for each context is kept, however many answers continue it.

    Args:
        filled: after a forward pass over the contexts, (C, H, S, D) keys and values in its attention layers.
        rows: int64 (B,), which of the C contexts each row of the block to come continues.

    Raises:
        UsageError: the model keeps states of a kind that is not known to be readable like this.
    """

    def __init__(self, filled: DynamicCache, rows: Tensor) -> None:
        for layer in filled.layers:
            if type(layer) not in _KNOWN:
                raise UsageError(
                    f"the model keeps its context in a {type(layer).__name__}, which cannot be frozen",
                    "train it with `--context full`",
                )
        super().__init__(layers=filled.layers)
        self.rows = rows
        self.reads = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The context's keys and values, (B, H, S, D), followed by the new ones, (B, H, T, D).

        Args:
            key_states: of the block.
            value_states: of the block.
            layer_idx: of the model.
            args: unused.
            kwargs: unused.

        Returns:
            Keys and values, (B, H, S + T, D).
        """
        self.reads += 1
        layer = self.layers[layer_idx]
        return (
            torch.cat([self._pick(layer.keys), key_states], dim=-2),
            torch.cat([self._pick(layer.values), value_states], dim=-2),
        )

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor:
        """The convolution's last inputs, (B, channels, kernel)."""
        return self._pick(self.layers[layer_idx].conv_states[state_idx])

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """The convolution's last inputs followed by the new ones, (B, channels, T)."""
        self.reads += 1
        return torch.cat([self.get_conv_state(layer_idx, state_idx), conv_states], dim=-1)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The recurrent state after the context, (B, heads, D, D'); None where a layer only convolves."""
        state = self.layers[layer_idx].recurrent_states[state_idx]
        return None if state is None else self._pick(state)

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """The new state as it came; nothing follows that would read it."""
        return recurrent_states

    def _pick(self, states: Tensor) -> Tensor:
        return states.index_select(0, self.rows.to(states.device))
