"""Wider attention heads that compute the same: engines have kernels for some widths only."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

_INTO_HEADS: Final = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
_OUT_OF_HEADS: Final = ("o_proj.weight",)
_NORMS: Final = ("q_norm.weight", "k_norm.weight")


def widen_heads(model: Qwen3ForCausalLM, width: int) -> Qwen3ForCausalLM:
    """The same function with attention heads of another width; the added dimensions are zeros and stay so in training.

    Three things depend on the width d, and each has its remedy, with D the new width:

    - The rotation by position turns dimensions i and i + d/2 by the angle position · θ^(−2i/d). With θ' = θ^(D/d) the
      angles of i and i + D/2 are the same, so each half of a head keeps its place at the beginning of the new half.
    - The norm of a head's queries and keys divides by √(Σx²/d), which becomes √(Σx²/D): both come out √(D/d) larger.
    - Attention divides their products by √d, which becomes √D. Together the products are √(D/d) too large, so the
      weight of the keys' norm is multiplied by √(d/D).

    Exact but for rounding and for ε of the two norms. Dimensions that are zero on both sides of a product get no
    gradient from it.

    Args:
        model: in any dtype; its weights are copied.
        width: not less than the present one; an even number.

    Raises:
        ValueError: for a width that is odd, or less than the present one.
    """
    old: int = model.config.head_dim
    if width < old or width % 2 or old % 2:
        raise ValueError(f"heads of {old} dimensions cannot be widened to {width}")
    theta = round(model.config.rope_parameters["rope_theta"] ** (width / old), 6)
    rotation = {**model.config.rope_parameters, "rope_theta": theta}
    config = Qwen3Config(**{**model.config.to_dict(), "head_dim": width, "rope_parameters": rotation})
    half = torch.arange(old // 2)
    place = torch.cat([half, width // 2 + half])
    with torch.random.fork_rng():
        wide = Qwen3ForCausalLM(config).to(model.dtype)
    weights = {name: _widened(name, tensor, place, old, width) for name, tensor in model.state_dict().items()}
    wide.load_state_dict(weights)
    return wide.train(model.training)


def _widened(name: str, tensor: Tensor, place: Tensor, old: int, width: int) -> Tensor:
    """A tensor of the wider model: `place` (d,) says where a head's old dimensions are among the new ones."""
    if name.endswith(_NORMS):
        new = torch.ones(width, dtype=tensor.dtype)
        new[place] = tensor * (math.sqrt(old / width) if "k_norm" in name else 1.0)
        return new
    rows = name.endswith(_INTO_HEADS)
    if not rows and not name.endswith(_OUT_OF_HEADS):
        return tensor
    matrix = tensor if rows else tensor.T
    heads = matrix.reshape(-1, old, matrix.shape[1])
    more = torch.zeros(heads.shape[0], width, matrix.shape[1], dtype=tensor.dtype)
    more[:, place] = heads
    flat = more.reshape(-1, matrix.shape[1])
    return flat if rows else flat.T.contiguous()
