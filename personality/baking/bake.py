"""`bake`: what steering adds at every position, moved into a checkpoint's weights."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from personality.baking.architecture import Architecture
from personality.baking.baked_weights import BakedWeights
from personality.baking.routes import ALTERNATIVES, plan_for
from personality.baking.weights import Weights
from personality.composition.opening import steering_of
from personality.manifests.errors import IncompatibleError
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.steering_record import SteeringRecord
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.steering_vector import listed

_WHERE = {
    "response": "only where it predicts the reply (`response`)",
    "decision": "only at the last token of the prompt (`decision`)",
}

_SCALE_SLACK = 1.05
"""Greatest scale that a proof covers, as a multiple of the one at which it was made."""
_TURN_SLACK = 1e-3
"""Greatest change of a direction, as a share of its length, that counts as none."""


def bake(
    weights: Weights, injections: Sequence[Injection], dtype: torch.dtype, route: str | None = None
) -> BakedWeights:
    """Weights that do by themselves what hooks would do.

    Args:
        weights: composed, or a checkpoint.
        injections: what steering does; all of it must be adding, at every position, always.
        dtype: to which what is added after a layer is rounded, as hooks round it (`Composer.layer_dtype`).
        route: the name of the route to take; None for the cheapest that fits.

    Raises:
        IncompatibleError: when one of them acts otherwise, the architecture has no route, or the named one does not
            fit it.
    """
    for item in injections:
        reason = _hindrance(item)
        if reason:
            raise IncompatibleError(
                f"`{item.label}` cannot be baked: it {reason}; a checkpoint can only hold what is added always and "
                "everywhere",
                ALTERNATIVES.replace("NAME", item.label.partition("@")[0] or "NAME"),
            )
    config = json.loads((weights.folder / "config.json").read_bytes())
    architecture = Architecture(config, weights.specs, weights.folder)
    return BakedWeights(weights, plan_for(architecture, additions(injections, dtype), route))


def _hindrance(item: Injection) -> str:
    if item.gate is not None:
        return "acts only on prompts that pass its condition"
    if item.positions != "all":
        return f"acts {_WHERE[item.positions]}"
    return "" if item.mode == "add" else f"acts by `{item.mode}`, which depends on what is there"


def additions(injections: Sequence[Injection], dtype: torch.dtype) -> dict[int, Tensor]:
    """What is added after each layer, float32 (d,): summed in float64 in order of label, rounded once, as by hooks."""
    found = {}
    for layer in sorted({item.layer for item in injections}):
        items = sorted((item for item in injections if item.layer == layer), key=lambda item: item.label)
        found[layer] = torch.stack([item.vector.double() for item in items]).sum(0).to(dtype).float()
    return found


def check_proven(repository: Repository, personality: Personality) -> None:
    """Refuse to bake vectors of which nobody knows what they do when they act everywhere.

    Raises:
        IncompatibleError: naming the first, and what its proof lacks.
    """
    manifests = {manifest.id: manifest for manifest in repository.manifests()}
    turned = _turned(repository, personality)
    for use in personality.uses:
        manifest = manifests.get(use.vector)
        if manifest is None or manifest.steering is None or use.scale == 0:
            continue
        lacking = _lacking(manifest.steering, use) or turned.get(use.label, "")
        if not lacking:
            continue
        raise IncompatibleError(
            f"`{use.label}` is not proven ({lacking}), and a baked vector is always on",
            "use it as it was proven, extract it again with probes to prove it by, or train it into the weights "
            f"(`persona promote {use.behavior}`); bake it all the same: `--bake-unproven`; export without it: "
            "`--without-steering`",
        )


def _lacking(steering: SteeringRecord, use: Use) -> str:
    """What the proof of a use lacks; empty when it is proven as it is used."""
    if steering.proof is None:
        return "nothing was measured"
    if not steering.proof.proven:
        return "; ".join(steering.proof.reasons)
    if use.layers is not None and tuple(range(use.layers.first, use.layers.last + 1)) != steering.layers:
        return f"it was proven in layer {listed(steering.layers)} and is used in {use.layers}"
    scale = steering.proof.scale
    if use.scale * scale < 0 or abs(use.scale) > abs(scale) * _SCALE_SLACK:
        return f"it was proven at scale {scale:g} and is used at {use.scale:g}"
    return ""


def _turned(repository: Repository, personality: Personality) -> dict[str, str]:
    """Uses whose directions composition turns away from those that were proven, with the reason, by label."""
    composition = personality.composition
    if composition.steering != "orthogonal":
        return {}
    added_up = personality.model_copy(update={"composition": composition.model_copy(update={"steering": "sum"})})
    pairs = zip(steering_of(repository, added_up), steering_of(repository, personality), strict=True)
    layers: dict[str, list[int]] = {}
    for own, turned in pairs:
        if float((own.vector - turned.vector).norm()) > _TURN_SLACK * float(own.vector.norm()):
            layers.setdefault(own.label, []).append(own.layer)
    return {
        label: f"it was proven in its own direction, `steering = orthogonal` turns it in layer {listed(tuple(found))}"
        for label, found in layers.items()
    }
