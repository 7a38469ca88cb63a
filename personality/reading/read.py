"""`read`: how far a text's activations lie along vectors' directions, token by token and layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from personality.composition.opening import composer_of
from personality.manifests.errors import DataError, IncompatibleError, UsageError
from personality.manifests.manifest import Manifest
from personality.manifests.personality_record import LayerRange, Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_tokenizer, threads_for
from personality.reading.passes import Pass, merged, text_pass, transcript_passes
from personality.reading.reading import Reading, Turn, VectorReading
from personality.vectors.steering.decoder_layers import decoder, residual_width, text_config
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.steering.steering_vector import SteeringVector, listed
from personality.vectors.training.examples import Message
from personality.vectors.training.tokens import Tokenizer
from personality.versions.recipe import own_steering


def read_text(
    repository: Repository,
    personality: Personality,
    text: str,
    manifests: Sequence[Manifest],
    *,
    layers: LayerRange | None = None,
    as_turn: bool = False,
) -> Reading:
    """Project a text's activations on steering vectors.

    Args:
        repository: where.
        personality: what reads: the base alone, or a version's. What its steering vectors add is part of what is read.
        text: any text.
        manifests: of steering vectors of this repository.
        layers: only these.
        as_turn: read it as a user's turn, up to where the reply begins, instead of as plain text.

    Raises:
        DataError: a text without tokens, or longer than the model reads.
        UsageError: no vectors, or a task vector among them.
        IncompatibleError: a vector of another base, or layers for which it has no direction.
        NotFoundError, CorruptError: base or vectors are missing or damaged.
    """

    def passes(tokenizer: Tokenizer) -> list[Pass]:
        return [text_pass(tokenizer, text, as_turn=as_turn)]

    return _read(repository, personality, passes, (), manifests, layers)


def read_transcript(
    repository: Repository,
    personality: Personality,
    messages: Sequence[Message],
    manifests: Sequence[Manifest],
    *,
    layers: LayerRange | None = None,
) -> Reading:
    """Project a conversation's activations on steering vectors, turn by turn.

    Args:
        repository, personality, manifests, layers: as for `read_text`.
        messages: of the conversation; see `transcript_passes` for what is put through.

    Raises:
        DataError: the chat template refuses the messages, or they are longer than the model reads.
        UsageError, IncompatibleError, NotFoundError, CorruptError: as `read_text`.
    """
    return _read(
        repository,
        personality,
        lambda tokenizer: transcript_passes(tokenizer, messages),
        messages,
        manifests,
        layers,
    )


def _read(
    repository: Repository,
    personality: Personality,
    make: Callable[[Tokenizer], list[Pass]],
    messages: Sequence[Message],
    manifests: Sequence[Manifest],
    layers: LayerRange | None,
) -> Reading:
    units = _units(repository, manifests, layers)
    composer = composer_of(repository, personality)
    tokenizer = load_tokenizer(composer.base.folder)
    passes = make(tokenizer)
    model = load_composed(composer)
    longest, most = max(len(item.ids) for item in passes), getattr(text_config(model), "max_position_embeddings", None)
    if most is not None and longest > most:
        raise DataError(f"{longest} tokens, the model reads at most {most}", "give a shorter text")
    if not composer.steering:
        passes = merged(passes)
    wanted = sorted({layer for _, vector in units for layer in vector.tensors})
    tokens: list[str] = []
    ids: list[int] = []
    turns: list[Turn] = []
    found: list[list[Tensor]] = [[] for _ in units]
    decided: list[dict[int, Tensor]] = [{} for _ in units]
    with threads_for(model):
        for item in passes:
            states = _states(model, item, wanted)
            for span in item.spans:
                part = slice(span.start, span.stop)
                begin = len(ids)
                ids += item.ids[part]
                tokens += [visible(tokenizer, token) for token in item.ids[part]]
                if messages:
                    message = messages[span.turn]
                    turns.append(Turn(span.turn, message.role, message.content, begin, len(ids)))
                for rows, decisions, (_, vector) in zip(found, decided, units, strict=True):
                    rows.append(_project(states, part, vector))
                    if span.is_reply:
                        before = slice(span.start - 1, span.start)
                        decisions[span.turn] = _project(states, before, vector)[0, 0]
    vectors = []
    for rows, decisions, (label, vector) in zip(found, decided, units, strict=True):
        cosines, projections = torch.cat(rows, dim=1).unbind(0)
        acting = tuple(layer for layer in vector.layers if layer in vector.tensors)
        vectors.append(
            VectorReading(label, tuple(vector.tensors), acting, vector.positions, cosines, projections, decisions)
        )
    return Reading(tuple(tokens), tuple(ids), tuple(turns), tuple(vectors))


def _units(
    repository: Repository, manifests: Sequence[Manifest], layers: LayerRange | None
) -> list[tuple[str, SteeringVector]]:
    """Each vector with its label; its tensors are unit directions of the layers to read, in order."""
    if not manifests:
        raise UsageError("no vectors to read a text on", "name them: `--vectors candid,listening`")
    units = []
    for manifest in manifests:
        own_steering(repository, manifest)
        vector = open_steering(repository, manifest.id, manifest.label)
        directions = {
            layer: tensor / tensor.norm()
            for layer, tensor in sorted(vector.tensors.items())
            if (layers is None or layer in layers) and bool(tensor.any())
        }
        if not directions:
            raise IncompatibleError(
                f"`{manifest.label}` has no direction in layers {layers}; it has {listed(tuple(vector.tensors))}",
                f"`--layers` within {listed(tuple(vector.tensors))}",
            )
        units.append((manifest.label, replace(vector, tensors=directions)))
    return units


@torch.inference_mode()
def _states(model: Any, item: Pass, layers: Sequence[int]) -> dict[int, Tensor]:
    """What layers give at every token, float32 (T, d) on the CPU, steering included: its hooks were there before."""
    owner, modules = decoder(model)
    if max(layers) >= len(modules):
        raise IncompatibleError(
            f"a vector has a direction for layer {max(layers)}, the model has layers 0-{len(modules) - 1} of width "
            f"{residual_width(model)}",
            "it was made for another base: extract it on this one",
        )
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found[layer] = hidden[0].float().cpu()

        return hook

    ids = torch.tensor([item.ids], device=next(model.parameters()).device)
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(modules[layer].register_forward_hook(keep(layer)).remove)
        if item.reply is not None:
            stack.enter_context(reply_starts([item.reply]))
        owner(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return found


def _project(states: dict[int, Tensor], part: slice, vector: SteeringVector) -> Tensor:
    """Cosines, then projections, of the tokens in `part`: float64 (2, T, l)."""
    columns = []
    for layer, direction in vector.tensors.items():
        hidden = states[layer][part].double()
        projection = hidden @ direction.double()
        columns.append(torch.stack([projection / hidden.norm(dim=-1).clamp_min(1e-12), projection]))
    return torch.stack(columns, dim=-1)


def visible(tokenizer: Tokenizer, token: int) -> str:
    """A token for people: white space and what is no whole character can be seen.

    A space is `·`, a line break `⏎`, a tab `⇥`; other bytes are as the vocabulary writes them.
    """
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if not text or "\ufffd" in text:
        text = str(tokenizer.convert_ids_to_tokens(token))
    for plain, shown in ((" ", "·"), ("\n", "⏎"), ("\t", "⇥"), ("\r", "␍")):
        text = text.replace(plain, shown)
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
