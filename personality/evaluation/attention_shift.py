"""Where a version looks while it answers: the attention that goes from its reply onto the user's direction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from personality.changing_model import ChangingModel
from personality.evaluation.intervals import mean, paired_difference
from personality.evaluation.replies import DEFAULT_NEW_TOKENS, end_ids, reply_ids, until_end
from personality.evaluation.scores import encode, prompt_text
from personality.evaluation.suite import Row
from personality.manifests.errors import DataError, IncompatibleError
from personality.manifests.evaluation import Figure
from personality.manifests.personality_record import Personality
from personality.model import threads_for
from personality.vectors.steering.reply_starts import reply_starts


@dataclass(frozen=True)
class Passage:
    """A prompt with a reply, token ids.

    Attributes:
        ids: of both.
        direction: [start, stop) of the last user turn's own words.
        reply: where the reply begins; what decides it is predicted from the token before.
    """

    ids: tuple[int, ...]
    direction: tuple[int, int]
    reply: int


@dataclass(frozen=True)
class LayerAttention:
    """Attention mass from the decision tokens onto the direction in one layer, mean over heads and rows.

    Attributes:
        layer: from 0.
        base, version: mass, 0 to 1 (bootstrap over rows).
        change: paired by row.
        heads: change of each head, mean over rows.
    """

    layer: int
    base: Figure
    version: Figure
    change: Figure
    heads: tuple[float, ...]


@dataclass(frozen=True)
class AttentionShift:
    """How a version's attention differs from the base's.

    The decision tokens are those that predict the reply: the prompt's last token and the reply's own but the last.

    Attributes:
        forced: both read the same text, the base's own reply: what is left is a change of the mechanism.
        own: each reads its own reply: what the reply says changes too, and with it where it looks.
        control_forced, control_own: the same for another behavior on the same prompts; empty without a control. A rise
            that the control shows as well is no sign of the behavior.
    """

    forced: tuple[LayerAttention, ...]
    own: tuple[LayerAttention, ...]
    control_forced: tuple[LayerAttention, ...] = ()
    control_own: tuple[LayerAttention, ...] = ()


def attention_shift(
    bench: ChangingModel,
    personality: Personality,
    rows: Sequence[Row],
    *,
    control: Personality | None = None,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
) -> AttentionShift:
    """Measure where a version looks, beside the base, on the same prompts.

    Args:
        bench: composes.
        personality: of the version.
        rows: of a probe; their prompts are used.
        control: another personality whose shift shows what any change would do.
        max_new_tokens: longest reply.

    Raises:
        DataError: when a prompt's last user turn cannot be found in the rendered chat.
        IncompatibleError: for a model without attention layers.
    """
    base = personality.model_copy(update={"uses": ()})
    with bench.taking(base) as (model, tokenizer), threads_for(model):
        theirs = [
            passage(tokenizer, row, reply)
            for row, reply in zip(rows, _replies(model, tokenizer, rows, max_new_tokens), strict=True)
        ]
        layers = attention_layers(model)
        at_base = attention_mass(model, theirs)

    def of(other: Personality) -> tuple[tuple[LayerAttention, ...], tuple[LayerAttention, ...]]:
        with bench.taking(other) as (model, tokenizer), threads_for(model):
            forced = attention_mass(model, theirs)
            replies = _replies(model, tokenizer, rows, max_new_tokens)
            own = attention_mass(
                model, [passage(tokenizer, row, reply) for row, reply in zip(rows, replies, strict=True)]
            )
        return _layers(layers, at_base, forced), _layers(layers, at_base, own)

    forced, own = of(personality)
    control_forced, control_own = of(control) if control is not None else ((), ())
    return AttentionShift(forced, own, control_forced, control_own)


def passage(tokenizer: Any, row: Row, reply: Sequence[int]) -> Passage:
    """A row's prompt with a reply, and where its direction is.

    Args:
        tokenizer: a fast one.
        row: of a probe.
        reply: token ids, at least one.

    Raises:
        DataError: when the last user turn cannot be found in the rendered chat.
    """
    text = prompt_text(tokenizer, [turn.as_json() for turn in row.prompt])
    users = [turn.content for turn in row.prompt if turn.role == "user"]
    begin = text.rfind(users[-1]) if users else -1
    if begin < 0 or not users[-1]:
        raise DataError(
            "a prompt's last user turn is not in the chat as the template renders it",
            "attention onto the direction is measured for prompts with a user turn that is left as it is",
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    end = begin + len(users[-1])
    # A token counts when it holds some of the turn's characters; markers around it hold none.
    inside = [i for i, (start, stop) in enumerate(encoded["offset_mapping"]) if start < end and stop > begin]
    head = list(encoded["input_ids"])
    return Passage((*head, *reply), (inside[0], inside[-1] + 1), len(head))


def attention_layers(model: Any) -> list[int]:
    """Numbers of a model's layers with softmax attention.

    Raises:
        IncompatibleError: when it has none.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    found = [number for number, kind in enumerate(kinds) if kind.endswith("attention") and kind != "linear_attention"]
    if not found:
        raise IncompatibleError(
            "this model has no attention layers to look into", "measure its recurrent state instead"
        )
    return found


@torch.inference_mode()
def attention_mass(model: Any, passages: Sequence[Passage]) -> np.ndarray:
    """Attention from the decision tokens onto the direction.

    Args:
        model: causal language model in evaluation mode.
        passages: prompts with replies.

    Returns:
        float64 (rows, layers with attention, heads): the mass on the direction's tokens, mean over decision tokens.
    """
    device = next(model.parameters()).device
    found = []
    with _eager(model):
        for item in passages:  # one by one: attention maps are the square of the length
            ids = torch.tensor([item.ids], device=device)
            with reply_starts([item.reply]):
                maps = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
            start, stop = item.direction
            queries = slice(item.reply - 1, len(item.ids) - 1)
            found.append(
                [
                    layer[0, :, queries, start:stop].sum(-1).mean(-1).double().cpu().numpy()
                    for layer in maps
                    if layer is not None
                ]
            )
    return np.asarray(found)


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    """The implementation that computes attention maps; the model's own again behind it."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _replies(model: Any, tokenizer: Any, rows: Sequence[Row], max_new_tokens: int) -> list[list[int]]:
    """Greedy replies, token ids; an empty one is the token that ends it, which is a decision too."""
    heads = [encode(tokenizer, prompt_text(tokenizer, [turn.as_json() for turn in row.prompt])) for row in rows]
    ends = end_ids(model, tokenizer)
    found = reply_ids(model, tokenizer, heads, max_new_tokens=max_new_tokens)
    return [until_end(reply, ends) or reply[:1] for reply in found]


def _layers(layers: Sequence[int], base: np.ndarray, version: np.ndarray) -> tuple[LayerAttention, ...]:
    found = []
    for index, layer in enumerate(layers):
        before, after = base[:, index].mean(-1), version[:, index].mean(-1)
        heads = (version[:, index] - base[:, index]).mean(0)
        found.append(
            LayerAttention(
                layer,
                mean(before.tolist()),
                mean(after.tolist()),
                paired_difference(before.tolist(), after.tolist()),
                tuple(float(value) for value in heads),
            )
        )
    return tuple(found)
