"""The routes, the cheapest first, why one is taken, and why there is none for some architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from personality.baking.architecture import Architecture
from personality.baking.existing_bias import ExistingBias
from personality.baking.expert_bias import ExpertBias
from personality.baking.mlp_bias import MlpBias, VllmMlpBias
from personality.baking.relabeling import Relabeling
from personality.baking.route import BakePlan, Route
from personality.baking.swiglu_widening import SwigluWidening
from personality.baking.vllm_reading import reading_of
from personality.manifests.errors import IncompatibleError

ROUTES: tuple[Route, ...] = (
    ExistingBias(),
    MlpBias(),
    ExpertBias(),
    Relabeling(),
    SwigluWidening(),
    VllmMlpBias(),
)
"""By what they cost: nothing or a number a neuron; then the same, but another class; then d neurons a layer; last what
transformers cannot read. A new architecture is a name in a route's table, or a class here; `self_test` tells whether it
is right, and the tests with vLLM whether that reads it."""
_BEFORE, _AFTER = ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
_OTHER_AFTER = ("post_mlp_layernorm.weight", "post_norm2.weight")
ALTERNATIVES = (
    "`persona promote NAME --data FILE` trains it into the weights; `persona ask` and Python steer while it runs; "
    "`--without-steering` exports the weights alone"
)


def plan_for(architecture: Architecture, additions: Mapping[int, Tensor], route: str | None = None) -> BakePlan:
    """What the cheapest route that fits would write, or the one that is named.

    Args:
        architecture: of the base.
        additions: see `Route.plan`.
        route: a route's name; None for the cheapest that fits.

    Raises:
        IncompatibleError: when none fits, or the named one does not.
    """
    hindrances = _hindrances(architecture)
    taken = _first(architecture, hindrances) if route is None else _named(architecture, hindrances, route)
    plan = taken.plan(architecture, additions)
    reading = reading_of(taken.name, architecture.model_type)
    return replace(
        plan,
        reason=_reason(architecture, hindrances, taken, asked=route is not None),
        notes=(*plan.notes, reading.note) if reading.note else plan.notes,
        dropped_by=(*plan.dropped_by, "vllm") if reading.lost else plan.dropped_by,
        serve_with=reading.serve_with,
    )


def fitting(architecture: Architecture) -> list[str]:
    """Names of the routes that fit, the cheapest first."""
    return [name for name, hindrance in _hindrances(architecture).items() if not hindrance]


def _hindrances(architecture: Architecture) -> dict[str, str]:
    """Why a route does not fit, empty when it does; of those that are for this type at all."""
    return {
        route.name: route.hindrance(architecture) for route in ROUTES if architecture.model_type in route.model_types
    }


def _first(architecture: Architecture, hindrances: Mapping[str, str]) -> Route:
    for route in ROUTES:
        if hindrances.get(route.name) == "":
            return route
    raise IncompatibleError(
        f"a steering vector cannot be baked into a `{architecture.model_type}` checkpoint: "
        f"{_impossible(architecture, hindrances)}",
        ALTERNATIVES,
    )


def _named(architecture: Architecture, hindrances: Mapping[str, str], name: str) -> Route:
    fit = [f"`{each}`" for each, hindrance in hindrances.items() if not hindrance]
    hint = f"routes that fit: {', '.join(fit)}" if fit else f"no route fits it; {ALTERNATIVES}"
    found = next((route for route in ROUTES if route.name == name), None)
    if found is None:
        raise IncompatibleError(f"there is no route `{name}`", hint)
    kind = architecture.model_type
    hindrance = hindrances.get(name, f"it is for {', '.join(sorted(found.model_types))}")
    if hindrance:
        raise IncompatibleError(f"the route `{name}` does not fit this `{kind}` checkpoint: {hindrance}", hint)
    return found


def _reason(architecture: Architecture, hindrances: Mapping[str, str], taken: Route, *, asked: bool) -> str:
    """Why a route was taken, and why those before it were not."""
    told = f"asked for; {taken.why}" if asked else taken.why
    names = [route.name for route in ROUTES if route.name in hindrances]
    before = names[: names.index(taken.name)]
    passed = [name for name in before if not hindrances[name]]
    if passed:
        return f"{told}; `{passed[0]}` would be cheaper"
    # Not having a bias yet is what makes the next route the way, and no news.
    relevant = [name for name in before if name != ExistingBias.name]
    return "; ".join([told, *(f"`{name}` does not fit: {hindrances[name]}" for name in relevant)])


def _impossible(architecture: Architecture, hindrances: Mapping[str, str]) -> str:
    if hindrances:
        return "; ".join(hindrances.values())
    if architecture.named(_AFTER) or any(architecture.named(name) for name in _OTHER_AFTER):
        kind = "sandwich norm" if architecture.named(_BEFORE) or not architecture.named(_AFTER) else "post-norm"
        return f"it normalizes the MLP's output before it is added ({kind}), so no weight adds a fixed vector"
    if any(".experts." in name for name in architecture.specs):
        return "its experts have no output bias that every token gets in full"
    return "no exact way is known for it"
