"""Predicted against actual: where a trained vector moves activations, beside where steering moved them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from personality.evaluation.suite import Probe
from personality.making.derived_directions import version_activations
from personality.manifests.errors import DataError
from personality.manifests.personality_record import LayerRange
from personality.manifests.steering_record import Positions
from personality.vectors.extraction.capture import activations
from personality.vectors.extraction.reading import Reading
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection, injections
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.training.examples import Example, Text, parse_text
from personality.vectors.training.tokens import ANY_LENGTH, Tokenizer, encode


@dataclass(frozen=True)
class LayerShift:
    """What steering and what training did in one layer; shifts are means over texts, in units of the activations.

    Attributes:
        layer: in which the steering vector acts.
        cosine: of the trained shift with the direction.
        consistency: mean cosine of the texts' own trained shifts with the direction.
        agreement: cosine of the trained shift with the steered one, which holds what steering in earlier layers has
            become here.
        length: of the trained shift.
        steered_length: of the steered shift.
    """

    layer: int
    cosine: float
    consistency: float
    agreement: float
    length: float
    steered_length: float

    @property
    def ratio(self) -> float | None:
        """Length of the trained shift over that of the steered one; None where steering moves nothing."""
        return self.length / self.steered_length if self.steered_length > 0 else None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        ratio = self.ratio
        return {
            "layer": self.layer,
            "cosine": round(self.cosine, 6),
            "consistency": round(self.consistency, 6),
            "agreement": round(self.agreement, 6),
            "length": round(self.length, 6),
            "steered_length": round(self.steered_length, 6),
            "ratio": round(ratio, 6) if ratio is not None else None,
        }


@dataclass(frozen=True)
class ReplyReading(Reading):
    """A reading of a text with a reply.

    Attributes:
        reply: index of the reply's first token, in or right behind `ids`.
    """

    reply: int


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
            "layers": [item.as_json() for item in self.layers],
            "texts": self.texts,
            "held_out": self.held_out,
            "positions": self.positions,
            "chance": round(self.chance, 6),
        }


def probe_readings(tokenizer: Tokenizer, probes: Sequence[Probe], positions: Positions) -> list[ReplyReading]:
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


def example_readings(tokenizer: Tokenizer, examples: Sequence[Example], positions: Positions) -> list[ReplyReading]:
    """Where a steering vector acts on examples and their chosen answers."""
    return [_reading(tokenizer, item.prompt, item.chosen, positions, item.where) for item in examples]


def _reading(tokenizer: Tokenizer, prompt: Text, reply: Text, positions: Positions, where: str) -> ReplyReading:
    encoded = encode(tokenizer, prompt, reply, ANY_LENGTH, where=where)
    # At a position the model predicts the next token, so those of the reply are read one earlier.
    start, stop = {
        "decision": (encoded.start - 1, encoded.start),
        "response": (encoded.start - 1, encoded.stop - 1),
        "all": (0, encoded.stop - 1),
    }[positions]
    return ReplyReading(encoded.ids[:stop], start, stop, encoded.start)


def measure_shift(
    base: nn.Module,
    trained: nn.Module,
    readings: Sequence[ReplyReading],
    vector: SteeringVector,
    *,
    scale: float = 1.0,
    layers: LayerRange | None = None,
    held_out: bool = True,
) -> Shift:
    """Compare what a trained vector does to activations with what a steering vector does to them.

    The steered shift is measured, not computed: what is added in one layer goes through the next ones, and only in mode
    `add` is it the same for every text.

    Args:
        base, trained: causal language models of transformers, without and with the trained vector.
        readings: at least one text.
        vector: the steering vector.
        scale: at which it acts.
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
    units = torch.nn.functional.normalize(torch.stack([acting[layer].double() for layer in wanted]), dim=-1)  # (S, d)
    given = injections(vector, scale, layers)
    total, total_steered = torch.zeros_like(units), torch.zeros_like(units)
    cosines = torch.zeros(len(wanted), dtype=torch.float64)
    for indices, states in version_activations(base, trained, readings):
        plain = states[:, 1, wanted].double()  # (b, S, d)
        moved = states[:, 0, wanted].double() - plain
        total += moved.sum(0)
        cosines += torch.nn.functional.cosine_similarity(moved, units[None], dim=-1).sum(0)
        total_steered += (_steered_states(base, [readings[index] for index in indices], given, wanted) - plain).sum(0)
    mean, steered_mean = total / len(readings), total_steered / len(readings)
    along = torch.nn.functional.cosine_similarity(mean, units, dim=-1)
    agreement = torch.nn.functional.cosine_similarity(mean, steered_mean, dim=-1)
    found = tuple(
        LayerShift(
            layer=layer,
            cosine=float(along[row]),
            consistency=float(cosines[row] / len(readings)),
            agreement=float(agreement[row]),
            length=float(mean[row].norm()),
            steered_length=float(steered_mean[row].norm()),
        )
        for row, layer in enumerate(wanted)
    )
    return Shift(found, len(readings), held_out, vector.positions, 1 / math.sqrt(units.shape[1]))


def _steered_states(
    base: nn.Module, readings: Sequence[ReplyReading], given: Sequence[Injection], layers: Sequence[int]
) -> Tensor:
    """Float64 (b, S, d): activations of one batch of texts while a steering vector acts."""
    whole = len(readings) * max(
        reading.stop for reading in readings
    )  # one forward pass, since the starts are its rows'
    with steered(base, given), reply_starts([reading.reply for reading in readings]):
        ((rows, states),) = activations(base, readings, batch_tokens=whole)
    result = torch.empty(len(readings), len(layers), states.shape[-1], dtype=torch.float64)
    result[rows] = states[:, list(layers)].double()
    return result
