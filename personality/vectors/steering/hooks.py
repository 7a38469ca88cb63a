"""Steering a transformers model: injections act through forward hooks, and nothing of them stays behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from personality.manifests.errors import IncompatibleError, PersonaError
from personality.manifests.steering_record import Mode, Positions
from personality.vectors.steering.decoder_layers import decoder, residual_width
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.reply_starts import known_starts
from personality.vectors.steering.steering_vector import Gate

# In this order within a layer: what is taken out is taken from what the layer gave.
_ORDER: tuple[Mode, ...] = ("project", "add", "norm-preserving")
_SAME = 1e-3
"""Relative eigenvalue of the cosines' matrix below which several directions to project out count as one."""


@contextlib.contextmanager
def steered(
    model: nn.Module, injections: Sequence[Injection], *, rounding: torch.dtype | None = None
) -> Iterator[None]:
    """Steer a model inside the block. Without injections (scale 0) nothing is installed: the base, bit for bit.

    Args:
        model: causal language model of transformers, also inside PEFT's wrapper.
        injections: what acts; those of a layer add up.
        rounding: round what is added in a layer to this dtype, as a checkpoint of that dtype would hold it.

    Raises:
        IncompatibleError: for another width or a layer that the model does not have.
    """
    handle = attach(model, injections, rounding=rounding)
    try:
        yield
    finally:
        handle.remove()


def attach(model: nn.Module, injections: Sequence[Injection], *, rounding: torch.dtype | None = None) -> SteeringHandle:
    """Steer a model until the handle's `remove` is called; arguments and errors as `steered`."""
    if not injections:
        return SteeringHandle([])
    owner, layers = decoder(model)
    width = residual_width(model)
    for item in injections:
        if item.layer >= len(layers) or item.vector.numel() != width:
            raise IncompatibleError(
                f"`{item.label}` acts after layer {item.layer} with width {item.vector.numel()}; the model has layers "
                f"0-{len(layers) - 1} of width {width}",
                "it was made for another base: extract it on this one",
            )
    steps = _Pass()
    handles = [owner.register_forward_pre_hook(steps.begin, with_kwargs=True)]
    for gate in _gates(injections):
        handles.append(layers[gate.layer].register_forward_hook(_GateHook(gate, steps)))
    for layer in sorted({item.layer for item in injections}):
        terms = _terms([item for item in injections if item.layer == layer], rounding)
        handles.append(layers[layer].register_forward_hook(_LayerHook(terms, steps)))
    return SteeringHandle(handles)


class SteeringHandle:
    """What `attach` returns."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take the injections off again; harmless when done already."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


@dataclass
class _Pass:
    """One forward pass: which positions it computes, and where its prompts end.

    Without `reply_starts`, several tokens in one pass are a prompt and a single one after others in the cache belongs
    to the reply: what `generate` does unless it works without a cache, or drafts several tokens at a time. One model
    is steered in one thread at a time.
    """

    width: int = 0
    past: int = 0
    last: Tensor | None = None  # (B,) index of each prompt's last token among the positions computed; None: none here
    open: dict[int, Tensor] = field(default_factory=dict)  # by gate: (B,) bool, kept while a reply is generated

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the module that runs the layers."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            raise PersonaError("a steered model was called without `input_ids`", "give them by name")
        cache = kwargs.get("past_key_values")
        self.past = int(cache.get_seq_length()) if cache is not None else 0
        if self.past == 0:
            self.open.clear()  # other prompts
        self.width = tokens.shape[1]
        starts = known_starts()
        if starts is not None:
            if starts.numel() != tokens.shape[0]:
                raise PersonaError(
                    f"{starts.numel()} replies' starts were told for a batch of {tokens.shape[0]}",
                    "tell one for each row: `reply_starts`",
                )
            self.last = starts.to(tokens.device) - 1 - self.past
        elif self.width == 1 and self.past > 0:
            self.last = None  # a token of the reply, which follows its prompt in the cache
        else:
            self.last = _last_tokens(tokens, kwargs.get("attention_mask"))

    def acting(self, positions: Positions, device: torch.device) -> Tensor | None:
        """(B, T) bool, or (1, 1): where a vector acts among the positions computed; None for everywhere."""
        if positions == "all":
            return None
        if self.last is None:
            return torch.full((1, 1), positions == "response", device=device)
        index = torch.arange(self.width, device=device)
        last = self.last.to(device)[:, None]
        return index >= last if positions == "response" else index == last

    def remember(self, gate: Gate, hidden: Tensor) -> None:
        """Look at the prompts' last tokens; while a reply is generated, what was found for its prompt holds."""
        if self.last is None:
            return
        last = self.last.to(hidden.device)
        here = (last >= 0) & (last < hidden.shape[1])
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        seen = hidden[rows, last.clamp(0, hidden.shape[1] - 1)].detach().float()
        projection = seen @ gate.direction.to(hidden.device)
        found = projection > gate.threshold if gate.above else projection < gate.threshold
        before = self.open.get(id(gate))
        # A prompt whose end was computed in an earlier pass keeps what was found then.
        known = before if before is not None and before.shape == found.shape else torch.zeros_like(found)
        self.open[id(gate)] = torch.where(here, found, known)

    def passes(self, gate: Gate, batch: int) -> Tensor:
        """(B, 1) bool: whose prompt passes a gate."""
        found = self.open.get(id(gate))
        if found is None or found.numel() != batch:
            raise PersonaError(
                f"a conditional vector acts on a batch of {batch} of whose prompts it has seen "
                f"{0 if found is None else found.numel()}",
                "put the prompts through first, in batches of the same rows",
            )
        return found[:, None]


def _last_tokens(tokens: Tensor, mask: Any) -> Tensor:
    """(B,) index of each row's last token that is not padding."""
    batch, width = tokens.shape[:2]
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return torch.full((batch,), width - 1, device=tokens.device)
    here = mask[:, -width:].bool()  # a mask covers cached tokens too
    return width - 1 - here.flip(1).int().argmax(1)


@dataclass(frozen=True)
class _Term:
    """The injections of one layer that act alike, added up."""

    mode: Mode
    positions: Positions
    gate: Gate | None
    vectors: Tensor  # (n, d): one for `project`, each with its own share; a single sum otherwise
    signs: tuple[float, ...]


def _gates(injections: Sequence[Injection]) -> list[Gate]:
    return list({id(item.gate): item.gate for item in injections if item.gate is not None}.values())


def _terms(injections: list[Injection], rounding: torch.dtype | None) -> list[_Term]:
    groups: dict[tuple[int, str, int], list[Injection]] = {}
    for item in injections:
        key = (_ORDER.index(item.mode), item.positions, id(item.gate) if item.gate else 0)
        groups.setdefault(key, []).append(item)
    terms = []
    for (order, _, _), items in sorted(groups.items(), key=lambda entry: entry[0][:2]):
        # In order of label, and in float64, so that a sum does not depend on who came first.
        items.sort(key=lambda item: item.label)
        vectors = torch.stack([item.vector.double() for item in items])
        if _ORDER[order] != "project":
            total = vectors.sum(0, keepdim=True)
            vectors = total.to(rounding) if rounding is not None else total
        signs = tuple(1.0 if item.scale > 0 else -1.0 for item in items)
        terms.append(_Term(_ORDER[order], items[0].positions, items[0].gate, vectors.float(), signs))
    return terms


class _GateHook:
    def __init__(self, gate: Gate, steps: _Pass) -> None:
        self._gate, self._steps = gate, steps

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self._steps.remember(self._gate, output[0] if isinstance(output, tuple) else output)


class _LayerHook:
    """Forward hook of a decoder layer; its output is a tensor (B, T, d), or a tuple that begins with one."""

    def __init__(self, terms: list[_Term], steps: _Pass) -> None:
        self._terms, self._steps = terms, steps

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        for term in self._terms:
            hidden = self._apply(hidden, term)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _apply(self, hidden: Tensor, term: _Term) -> Tensor:
        where = self._steps.acting(term.positions, hidden.device)
        if term.gate is not None:
            passing = self._steps.passes(term.gate, hidden.shape[0]).to(hidden.device)
            where = passing if where is None else where & passing
        moved = _moved(hidden, term)
        return moved if where is None else torch.where(where[..., None], moved, hidden)


def _moved(hidden: Tensor, term: _Term) -> Tensor:
    vectors = term.vectors.to(hidden.device)
    if term.mode == "add":
        return hidden + vectors[0].to(hidden.dtype)
    wide = hidden.float()
    if term.mode == "project":
        shares = vectors.norm(dim=1)
        units = vectors / shares[:, None]
        # Coordinates in the directions' own span: what two similar ones share is taken out once.
        coordinates = wide @ units.T @ torch.linalg.pinv(units @ units.T, hermitian=True, rtol=_SAME)
        kept = wide - (coordinates * shares * torch.tensor(term.signs, device=hidden.device)) @ units
        found: Tensor = kept.to(hidden.dtype)
        return found
    turned = wide + vectors[0]
    stretch = wide.norm(dim=-1, keepdim=True) / turned.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    result: Tensor = (turned * stretch).to(hidden.dtype)
    return result
