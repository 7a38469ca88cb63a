"""What each layer's direction does to a behavior when it acts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from personality.evaluation.suite import Probe
from personality.proving.quick_figures import QuickFigures
from personality.vectors.steering.injection import injections
from personality.vectors.steering.steering_vector import SteeringVector

_ROWS = 16


def layer_effects(
    model: Any, tokenizer: Any, wanted: Sequence[Probe], vector: SteeringVector, scale: float = 1.0
) -> dict[int, float]:
    """Mean change of the wanted decision's probability, by layer.

    Args:
        model: the base, unsteered, in evaluation mode.
        tokenizer: its tokenizer.
        wanted: probes that the vector should raise; 16 rows of each are looked at, by teacher forcing.
        vector: calibrated layer by layer; its condition is left out, since it may look at a later layer.
        scale: of each layer.

    Returns:
        −1 to 1 by layer; empty without probes that can be looked at so.
    """
    quick = QuickFigures(model, tokenizer, [probe.first(_ROWS) for probe in wanted])
    if not quick.base:
        return {}
    found = {}
    for layer in sorted(vector.tensors):
        alone = replace(vector, layers=(layer,), joint=1.0, gate=None)
        figures = quick.measure(injections(alone, scale))
        changes = [figures[name].probability - quick.base[name].probability for name in quick.base]
        found[layer] = sum(changes) / len(changes)
    return found
