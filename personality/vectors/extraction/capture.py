"""Activations of texts: what every decoder layer gives at a reading's tokens, and nothing else of the forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from personality.manifests.errors import PersonaError, UsageError
from personality.vectors.extraction.reading import Reading, ReadPair
from personality.vectors.steering.decoder_layers import decoder
from personality.vectors.training.batches import padded

BATCH_TOKENS: Final = 16_384
"""Most tokens of one forward pass on an accelerator, padding included; a single longer text goes through alone."""

CPU_BATCH_TOKENS: Final = 2048
"""The same on a CPU, where larger batches are slower, since a layer's intermediate results leave its caches."""

BLOCK: Final = 64
"""Pairs whose activations are in memory together."""

OnBatch = Callable[[int, int], None]
"""Called after each forward pass with the number of texts done and of all texts."""


def activations(
    model: nn.Module,
    readings: Sequence[Reading],
    *,
    batch_tokens: int | None = None,
    labels: Sequence[str] | None = None,
    on_batch: OnBatch | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Mean output of each decoder layer over each reading's tokens, all layers in one forward pass.

    Texts meet in batches by length, padded on the right, where a causal model never looks from a real token, so a
    text's activations are those it would have alone. Only the decoder runs: no logits, no cache of keys and values,
    and nothing after a reading's last token. The means are taken in float32 whatever the model computes in.

    Args:
        model: causal language model of transformers, of any dtype, on any device; run in evaluation mode.
        readings: token ids and the span of positions to average.
        batch_tokens: most tokens of one forward pass, padding included; None for what suits the model's device.
        labels: what to call each reading in an error; by default its number.
        on_batch: called after each forward pass.

    Yields:
        Indices of b readings, and their activations float32 (b, L, d) on the CPU: L layers of width d. Every reading
        comes once; shorter ones come first.

    Raises:
        PersonaError: an activation is NaN or infinite.
        UsageError: a reading without tokens, or a span outside of its tokens.
    """
    for index, reading in enumerate(readings):
        if not 0 <= reading.start < reading.stop <= len(reading.ids):
            raise UsageError(
                f"{_label(labels, index)}: positions {reading.start}-{reading.stop} of {len(reading.ids)} tokens",
                "a reading needs at least one token inside its text",
            )
    done = 0
    for batch in _batches(readings, batch_tokens or default_tokens(model)):
        found = _forward(model, [readings[index] for index in batch])
        finite = found.isfinite().all(-1)  # (b, L)
        if not bool(finite.all()):
            row, layer = (int(x) for x in (~finite).nonzero()[0])
            raise PersonaError(
                f"{_label(labels, batch[row])}: the activations after layer {layer} are NaN or infinite "
                f"(the model computes in {str(next(model.parameters()).dtype).removeprefix('torch.')})",
                "load the model in bfloat16 or float32, since float16 overflows at 65504; if it was so already, its "
                "weights are damaged: fetch the base again",
            )
        done += len(batch)
        if on_batch is not None:
            on_batch(done, len(readings))
        yield batch, found


def pair_activations(
    model: nn.Module,
    pairs: Sequence[ReadPair],
    *,
    batch_tokens: int | None = None,
    on_batch: OnBatch | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Activations of both texts of each pair, a block of pairs at a time.

    The blocks do not depend on the order in which the pairs are given, nor on `batch_tokens`.

    Args:
        model, batch_tokens, on_batch: as for `activations`.
        pairs: any number.

    Yields:
        Indices of at most `BLOCK` pairs, and their activations float32 (b, 2, L, d): the positive text, then the
        negative one.

    Raises:
        PersonaError, UsageError: as `activations`; the message begins with the pair's place and side.
    """
    order = sorted(range(len(pairs)), key=lambda index: _length_key(pairs[index]))
    for first in range(0, len(order), BLOCK):
        block = order[first : first + BLOCK]
        readings = [reading for index in block for reading in (pairs[index].positive, pairs[index].negative)]
        labels = [f"{pairs[index].where} ({side})" for index in block for side in ("positive", "negative")]
        result: Tensor | None = None
        for rows, found in activations(
            model, readings, batch_tokens=batch_tokens, labels=labels, on_batch=_offset(on_batch, 2 * first, pairs)
        ):
            if result is None:
                result = found.new_empty(len(readings), *found.shape[1:])
            result[rows] = found
        assert result is not None
        yield block, result.reshape(len(block), 2, *result.shape[1:])


def _offset(on_batch: OnBatch | None, before: int, pairs: Sequence[ReadPair]) -> OnBatch | None:
    if on_batch is None:
        return None
    return lambda done, _: on_batch(before + done, 2 * len(pairs))


def _length_key(pair: ReadPair) -> tuple[Any, ...]:
    """Sorts pairs by length; ids break ties, so that the order given does not matter."""
    lengths = sorted((pair.positive.stop, pair.negative.stop), reverse=True)
    return (*lengths, pair.positive.ids, pair.negative.ids)


def _label(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels is not None else f"text {index + 1}"


def default_tokens(model: nn.Module) -> int:
    """Most tokens of one forward pass on the device that a model is on."""
    return CPU_BATCH_TOKENS if next(model.parameters()).device.type == "cpu" else BATCH_TOKENS


def _batches(readings: Sequence[Reading], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(readings)), key=lambda index: readings[index].stop):
        if batch and (len(batch) + 1) * readings[index].stop > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def _forward(model: nn.Module, readings: Sequence[Reading]) -> Tensor:
    """Float32 (b, L, d) on the CPU."""
    owner, layers = decoder(model)
    device = next(model.parameters()).device
    # What follows a reading's last token cannot change it.
    ids, mask = (block.to(device) for block in padded([reading.ids[: reading.stop] for reading in readings], 0))
    hooks = [_MeanHook(readings) for _ in layers]
    with _evaluating(model), contextlib.ExitStack() as stack:
        for layer, hook in zip(layers, hooks, strict=True):
            stack.callback(layer.register_forward_hook(hook).remove)
        owner(input_ids=ids, attention_mask=mask, use_cache=False)
    return torch.stack([hook.mean.cpu() for hook in hooks], dim=1)


class _MeanHook:
    """Forward hook of a decoder layer, whose output is a tensor (b, T, d) or a tuple that begins with one."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        spans = torch.tensor([(reading.start, reading.stop) for reading in readings])
        lengths = spans[:, 1:] - spans[:, :1]
        steps = torch.arange(int(lengths.max()))
        inside = steps < lengths
        # Places beyond a span repeat its first token with weight 0: padding, whatever it holds, is never touched.
        self._positions = spans[:, :1] + steps * inside
        self._weights = (inside / lengths)[..., None]
        self.mean: Tensor = torch.empty(0)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        found = hidden[rows, self._positions.to(hidden.device)].float()  # (b, S, d)
        self.mean = found[:, 0] if found.shape[1] == 1 else (found * self._weights.to(hidden.device)).sum(1)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
