"""The routes, in the order in which they are tried, and why there is none for some architectures."""

from __future__ import annotations

from personality.baking.architecture import Architecture
from personality.baking.existing_bias import ExistingBias, skips_bias
from personality.baking.expert_bias import ExpertBias
from personality.baking.mlp_bias import MlpBias
from personality.baking.route import Route
from personality.baking.swiglu_widening import SwigluWidening
from personality.manifests.errors import IncompatibleError

ROUTES: tuple[Route, ...] = (ExistingBias(), MlpBias(), ExpertBias(), SwigluWidening())
"""A new architecture is a name in a route's table, or a class here; `self_test` tells whether it is right."""
_BEFORE, _AFTER = ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
_OTHER_AFTER = ("post_mlp_layernorm.weight", "post_norm2.weight")
ALTERNATIVES = (
    "`persona promote NAME --data FILE` trains it into the weights; `persona ask` and Python steer while it runs; "
    "`--without-steering` exports the weights alone"
)


def route_for(architecture: Architecture) -> Route:
    """The way to bake a vector into this architecture.

    Raises:
        IncompatibleError: when there is none, with the reason.
    """
    for route in ROUTES:
        if route.matches(architecture):
            return route
    raise IncompatibleError(
        f"a steering vector cannot be baked into a `{architecture.model_type}` checkpoint: {_reason(architecture)}",
        ALTERNATIVES,
    )


def _reason(architecture: Architecture) -> str:
    if skips_bias(architecture):
        tp = architecture.text["pretraining_tp"]
        return f"with `slow_but_exact: true` and `pretraining_tp: {tp}` it leaves the output projection's bias out"
    if architecture.named(_AFTER) or any(architecture.named(name) for name in _OTHER_AFTER):
        kind = "sandwich norm" if architecture.named(_BEFORE) or not architecture.named(_AFTER) else "post-norm"
        return f"it normalizes the MLP's output before it is added ({kind}), so no weight adds a fixed vector"
    if any(".experts." in name for name in architecture.specs):
        return "its experts have no output bias that every token gets in full"
    return "no exact way is known for it"
