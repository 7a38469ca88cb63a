"""Parameters by what they are for: `attention.q`, `gdn`, `experts.shared`, with a range of layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import nn

from personality.manifests.errors import UsageError
from personality.manifests.names import near
from personality.manifests.personality_record import LayerRange
from personality.vectors.layers import layer_count, layer_of

# A part of a dotted name, and the group or half of one that it means; the first that fits wins. Fused
# projections are groups of their own: their parts cannot be chosen apart.
_ATTENTION = (
    (r"q_proj|q_a_proj|q_b_proj|query", "q"),
    (r"k_proj|key", "k"),
    (r"v_proj|value", "v"),
    (r"o_proj|out_proj|dense|c_proj", "o"),
    (r"qkv_proj|qkv|c_attn|query_key_value|W_pack", "qkv"),
    (r"kv_a_proj_with_mqa|kv_b_proj", "kv"),
)
_DELTA_NET = (
    (r"A_log|dt_bias", "decay"),
    (r"(?:[qkv]_)?conv1d", "conv"),
    (r"out_proj|o_proj", "out"),
    (r"in_proj\w*|[qkvabg]_proj", "in"),
)
_FEED_FORWARD = (
    (r"gate_up_proj(?:_bias)?", "gate_up"),
    (r"gate_proj|w1", "gate"),
    (r"up_proj|c_fc|dense_h_to_4h|fc1|w3", "up"),
    (r"down_proj(?:_bias)?|c_proj|dense_4h_to_h|fc2|w2", "down"),
)
_BESIDE = re.compile(r"visual|vision_\w+|audio_\w+|multi_modal_projector|mtp")
_NORM = re.compile(r"\w*norm\w*|ln_\w+")
_EMBEDDING = re.compile(r"embed_tokens|embed_in|wte|wpe|word_embeddings|embeddings")
_HEAD = re.compile(r"lm_head|embed_out")
_MODULES = (
    (re.compile(r"linear_attn|gated_delta_net"), "gdn", _DELTA_NET),
    (re.compile(r"self_attn|self_attention|attn|attention"), "attention", _ATTENTION),
    (re.compile(r"mlp|feed_forward|block_sparse_moe|moe"), "mlp", _FEED_FORWARD),
)
_ROUTER = re.compile(r"gate|router|shared_expert_gate")
_SHARED = re.compile(r"shared_experts?")


def group_of(name: str) -> str:
    """What a parameter is for, whatever its architecture calls it.

    Args:
        name: a parameter's name in a model of transformers, also below PEFT's wrapper.

    Returns:
        attention.q, .k, .v, .o (and .qkv, .kv where they are fused); mlp.gate, .up, .down; experts.gate_up,
        .down (routed, packed) and experts.shared.gate, .up, .down; router; gdn.in, .conv, .decay (A_log and
        dt_bias), .out of Gated-DeltaNet; norm, with those of queries and keys; embedding; head; "beside" for
        what is not the language model's (towers for images and sound, further heads); and "other".
        A bias goes with its weight.
    """
    parts = name.split(".")
    if _has(_BESIDE, parts):
        return "beside"
    if _has(_NORM, parts):
        return "norm"
    if _has(_HEAD, parts):
        return "head"
    if _has(_EMBEDDING, parts):
        return "embedding"
    for inside, kind, roles in _MODULES:
        place = next((index for index, part in enumerate(parts) if inside.fullmatch(part)), None)
        if place is not None:
            below = parts[place + 1 :]
            role = next((role for pattern, role in roles if _has(re.compile(pattern), below)), "other")
            return f"{kind}.{role}" if kind != "mlp" else _feed_forward_group(below, role)
    return "other"


def group_sizes(model: nn.Module) -> dict[str, int]:
    """Numbers of elements by group.

    Args:
        model: of transformers.

    Returns:
        By group, in alphabetical order.
    """
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        sizes[group_of(name)] += parameter.numel()
    return dict(sorted(sizes.items()))


def select_parameters(model: nn.Module, only: Sequence[str], layers: str | None) -> set[str]:
    """Names of the parameters that a user's words choose.

    Args:
        model: of transformers, wrapped by PEFT or not; which of its parameters require gradients does not matter.
        only: groups, or beginnings of groups up to a dot, such as "attention" or "attention.q"; empty for all.
        layers: first and last layer, such as "10-20", or one, counted from 0; None for all. With a range nothing
            outside of the layers (embedding, head, final norm) is chosen.

    Returns:
        Names as `model.named_parameters()` gives them.

    Raises:
        UsageError: a group that this model does not have, there or anywhere; layers that it does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    where = "this model"
    if layers is not None:
        wanted, count = LayerRange.parse(layers), layer_count(names)
        if wanted.last >= count:
            raise UsageError(f"layers {wanted}: the model has {count} layers", f"give layers between 0 and {count - 1}")
        names = [name for name in names if (layer := layer_of(name)) is not None and layer in wanted]
        where = f"layers {wanted}"
    if not only:
        return set(names)
    groups = {name: group_of(name) for name in names}
    chosen: set[str] = set()
    for selector in only:
        found = {name for name, group in groups.items() if f"{group}.".startswith(f"{selector}.")}
        if not found:
            sizes = group_sizes(model)
            meant = near(selector, [*sizes, *(group.partition(".")[0] for group in sizes)])
            there = ", ".join(f"{group} ({sizes[group]:,})" for group in sorted(set(groups.values())))
            raise UsageError(
                f"nothing in {where} is called `{selector}`",
                f"{meant + ' ' if meant else ''}there is, with numbers of parameters in the model: {there}",
            )
        chosen |= found
    return chosen


def _feed_forward_group(below: Sequence[str], role: str) -> str:
    """The group of a parameter inside a feed-forward block, dense or of experts."""
    if _has(_ROUTER, below):
        return "router"
    if _has(_SHARED, below):
        return f"experts.shared.{role}"
    return f"experts.{role}" if "experts" in below else f"mlp.{role}"


def _has(pattern: re.Pattern[str], parts: Sequence[str]) -> bool:
    """Whether any part of a dotted name is what the pattern says, from end to end."""
    return any(pattern.fullmatch(part) for part in parts)
