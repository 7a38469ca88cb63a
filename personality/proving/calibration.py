"""From directions to a vector whose scale means something, with its dose-response curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from personality.evaluation.suite import Probe
from personality.manifests.errors import IncompatibleError
from personality.manifests.steering_record import Calibration, Mode, Positions
from personality.proving.dose_response import DOSES, Coherence, OnStep, coherent_to, dose_response
from personality.proving.general_text import GeneralText
from personality.vectors.extraction.base_predictions import BasePredictions
from personality.vectors.extraction.iso_kl import Crossing, calibrate_layers, joint_factor
from personality.vectors.steering.injection import injections
from personality.vectors.steering.steering_vector import Gate, SteeringVector
from personality.vectors.training.tokens import pad_id


@dataclass(frozen=True)
class Calibrated:
    """A calibrated vector.

    Attributes:
        vector: what scale 1 means, in every layer alone and in the default layers together.
        calibration: for the manifest.
        coefficients: of the unit direction, by layer.
        reached: nats at scale 1 by layer; below 1 where the mode cannot do more.
    """

    vector: SteeringVector
    calibration: Calibration
    coefficients: dict[int, float]
    reached: dict[int, float]


def calibrate(
    model: Any,
    tokenizer: Any,
    general: GeneralText,
    directions: Mapping[int, Tensor],
    *,
    positions: Positions,
    mode: Mode,
    layers: tuple[int, ...],
    activations: Mapping[int, float],
    gate: Gate | None = None,
    probes: Sequence[Probe] = (),
    scales: Sequence[float] = DOSES,
    on_step: OnStep | None = None,
) -> Calibrated:
    """Find the strength that scale 1 means, and draw the curve around it.

    A condition is left out while calibrating: scale 1 says how strong the vector is where it acts.

    Args:
        model: the base, unsteered, in evaluation mode.
        tokenizer: its tokenizer.
        general: to calibrate on.
        directions: float32 (d,) of any length, for every layer that a use may name; those of length 0 are left out.
        positions, mode: see `Positions` and `Mode`.
        layers: where it acts unless a use says otherwise.
        activations: mean norm of the activations by layer.
        gate: when it acts.
        probes: to look at along the curve.
        scales: of the curve.
        on_step: called before each step with its number, the number of steps, and what it is.

    Raises:
        IncompatibleError: a default layer has a direction of length 0.
    """
    for layer in layers:
        if not bool(directions[layer].any()):
            raise IncompatibleError(f"the direction of layer {layer} is zero", "leave that layer out (`--layers`)")
    steps = len(directions) + len(scales)
    base = BasePredictions(model, general.texts, positions, pad_id=pad_id(tokenizer))

    def on_layer(done: int, of: int) -> None:
        if on_step:
            on_step(done, steps, f"layer {done} of {of}")

    found = calibrate_layers(model, base, directions, positions, mode, activations=activations, on_layer=on_layer)
    tensors = {
        layer: (directions[layer].double() / directions[layer].double().norm() * crossing.at).float()
        for layer, crossing in found.items()
    }
    vector = SteeringVector(tensors, positions, mode, layers)
    whole: Crossing = found[layers[0]]
    if len(layers) > 1:
        whole = joint_factor(model, base, vector)
        vector = SteeringVector(tensors, positions, mode, layers, joint=whole.at)
    points = dose_response(
        model,
        tokenizer,
        vector,
        base,
        Coherence(model, tokenizer, general),
        probes,
        scales=scales,
        on_step=(lambda done, _, what: on_step(len(directions) + done, steps, what)) if on_step else None,
    )
    reached = base.drift(model, injections(vector, 1.0)).kl_95
    calibration = Calibration(
        tokens=base.tokens,
        texts=base.count,
        kl_95=reached if math.isfinite(reached) else whole.value,
        text=general.digest,
        curve=points,
        coherent_to=coherent_to(points),
    )
    vector = SteeringVector(tensors, positions, mode, layers, vector.joint, gate)
    return Calibrated(
        vector,
        calibration,
        {layer: crossing.at for layer, crossing in found.items()},
        {layer: crossing.value for layer, crossing in found.items()},
    )
