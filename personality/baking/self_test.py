"""A route's self-test: a small random model of an architecture, with hooks and baked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from personality.baking.bake import bake
from personality.baking.baked_comparison import BakedComparison, compare_baked
from personality.builds.comparison import log_probabilities, probe_tokens
from personality.builds.writer import write_checkpoint
from personality.model import load_model, quiet_transformers
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.steering.decoder_layers import decoder_layers, residual_width
from personality.vectors.steering.injection import Injection

_NOISE = 0.05
_STRENGTH = 0.3


@dataclass(frozen=True)
class SelfTest:
    """What a route did to a random model.

    Attributes:
        route: that was taken.
        cost: in words.
        comparison: of the baked checkpoint, reloaded, with the hooked model.
    """

    route: str
    cost: str
    comparison: BakedComparison


def random_model(config: Any, folder: Path, *, dtype: torch.dtype, seed: int = 0) -> list[Injection]:
    """Write a checkpoint with random weights, and give vectors for its first and its last layer.

    Args:
        config: a transformers configuration of a model small enough to make.
        folder: to write.
        dtype: of the checkpoint.
        seed: of weights and vectors.
    """
    import transformers

    quiet_transformers()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # biases of zero and norms of one would hide what goes missing
                parameter.add_(torch.randn_like(parameter) * _NOISE)
        layers, width = len(decoder_layers(model)), residual_width(model)
        vectors = {layer: torch.randn(width) * _STRENGTH for layer in (0, layers - 1)}
    model.to(dtype).save_pretrained(folder)
    return [Injection(layer, vector, "all", "add", label="self-test@1") for layer, vector in vectors.items()]


def self_test(
    config: Any, folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0, route: str | None = None
) -> SelfTest:
    """Make a random model, steer its first and its last layer by hooks and by baking, and compare.

    Args:
        config: a transformers configuration of a model small enough to make.
        folder: an empty folder for two checkpoints, `base` and `baked`.
        dtype: of the checkpoints; both are computed in float32.
        seed: of weights and vectors.
        route: the route to take; None for the cheapest that fits.

    Raises:
        IncompatibleError: when the architecture has no route, or not this one.
    """
    steering = random_model(config, folder / "base", dtype=dtype, seed=seed)
    (folder / "baked").mkdir()
    baked = bake(Checkpoint(folder / "base"), steering, dtype, route)
    write_checkpoint(baked, folder / "baked", config=baked.plan.config)
    plain = load_model(folder / "base")
    ids = probe_tokens(plain.get_input_embeddings().num_embeddings)
    found = log_probabilities(load_model(folder / "baked"), ids)
    comparison = compare_baked(found, plain, steering, ids, tolerance=baked.plan.tolerance, rounding=dtype)
    return SelfTest(baked.plan.route, baked.plan.cost, comparison)
