"""Predicted against actual: where a trained vector moves activations, seen along a steering vector's direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from personality.evaluation.suite import Probe
from personality.making.derived_directions import version_activations
from personality.manifests.errors import DataError
from personality.manifests.personality_record import LayerRange
from personality.manifests.steering_record import Positions
from personality.vectors.extraction.reading import Reading
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.training.examples import Example, Text, parse_text
from personality.vectors.training.tokens import ANY_LENGTH, Tokenizer, encode


@dataclass(frozen=True)
class LayerShift:
    """What training did in one layer.

    Attributes:
        layer: in which the steering vector acts.
        cosine: of the mean shift with the direction.
        along: mean shift along the direction, in units of what the steering vector adds in this layer at scale 1: where
            training does exactly what steering did, it is the scale of the use.
        length: of the mean shift in the same units, whatever its direction.
        consistency: mean cosine of the texts' own shifts with the direction.
    """

    layer: int
    cosine: float
    along: float
    length: float
    consistency: float


@dataclass(frozen=True)
class Shift:
    """Activation shift of a trained vector, where a steering vector acts.

    Attributes:
        layers: acting layers.
        texts: over which it is averaged.
        held_out: the texts are of the probes; else they are the training data.
        positions: where the activations were read: where the steering vector acts.
        chance: 1/√d, the usual size of the cosine of two random directions of width d.
    """

    layers: tuple[LayerShift, ...]
    texts: int
    held_out: bool
    positions: Positions
    chance: float

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "layers": [
                {name: value if name == "layer" else round(value, 6) for name, value in vars(item).items()}
                for item in self.layers
            ],
            "texts": self.texts,
            "held_out": self.held_out,
            "positions": self.positions,
            "chance": round(self.chance, 6),
        }


def probe_readings(tokenizer: Tokenizer, probes: Sequence[Probe], positions: Positions) -> list[Reading]:
    """Where a steering vector acts on the rows of probes that have the wanted reply."""
    readings = []
    for probe in probes:
        for number, row in enumerate(probe.rows, start=1):
            if row.chosen:
                where = f"probe {probe.name}, row {number}"
                prompt = parse_text([turn.as_json() for turn in row.prompt], where)
                reply = parse_text([turn.as_json() for turn in row.chosen], where)
                readings.append(_reading(tokenizer, prompt, reply, positions, where))
    return readings


def example_readings(tokenizer: Tokenizer, examples: Sequence[Example], positions: Positions) -> list[Reading]:
    """Where a steering vector acts on examples and their chosen answers."""
    return [_reading(tokenizer, item.prompt, item.chosen, positions, item.where) for item in examples]


def _reading(tokenizer: Tokenizer, prompt: Text, reply: Text, positions: Positions, where: str) -> Reading:
    encoded = encode(tokenizer, prompt, reply, ANY_LENGTH, where=where)
    # At a position the model predicts the next token, so those of the reply are read one earlier.
    start, stop = {
        "decision": (encoded.start - 1, encoded.start),
        "response": (encoded.start - 1, encoded.stop - 1),
        "all": (0, encoded.stop - 1),
    }[positions]
    return Reading(encoded.ids[:stop], start, stop)


def measure_shift(
    base: nn.Module,
    trained: nn.Module,
    readings: Sequence[Reading],
    vector: SteeringVector,
    *,
    layers: LayerRange | None = None,
    held_out: bool = True,
) -> Shift:
    """Compare what a trained vector does to activations with what a steering vector adds.

    Args:
        base, trained: causal language models of transformers, without and with the trained vector.
        readings: at least one text.
        vector: the steering vector.
        layers: in which it acts; None for its own.
        held_out: the texts were not trained on.

    Raises:
        DataError: no texts.
        IncompatibleError: models that do not fit each other, or a layer without a direction.
    """
    if not readings:
        raise DataError("no texts to read the trained vector's shift on", "give the behavior probes with `chosen`")
    acting = vector.acting(layers)
    wanted = list(acting)
    directions = torch.stack([acting[layer].double() for layer in wanted])  # (S, d)
    scale_one = directions.norm(dim=-1)
    units = directions / scale_one[:, None]
    total, cosines = torch.zeros_like(directions), torch.zeros(len(wanted), dtype=torch.float64)
    for _, states in version_activations(base, trained, readings):
        moved = (states[:, 0, wanted] - states[:, 1, wanted]).double()  # (b, S, d)
        total += moved.sum(0)
        cosines += torch.nn.functional.cosine_similarity(moved, units[None], dim=-1).sum(0)
    mean = total / len(readings)
    along = (mean * units).sum(-1)
    length = mean.norm(dim=-1)
    found = tuple(
        LayerShift(
            layer=layer,
            cosine=float(along[row] / length[row].clamp_min(1e-30)),
            along=float(along[row] / scale_one[row]),
            length=float(length[row] / scale_one[row]),
            consistency=float(cosines[row] / len(readings)),
        )
        for row, layer in enumerate(wanted)
    )
    return Shift(found, len(readings), held_out, vector.positions, 1 / math.sqrt(directions.shape[1]))
