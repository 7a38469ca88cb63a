"""Iso-KL calibration: how far a steered model predicts from its base, and the coefficient that makes it 1 nat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from personality.manifests.errors import DataError
from personality.manifests.steering_record import Mode, Positions
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection, injections
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.steering.steering_vector import SteeringVector
from personality.vectors.training.batches import padded
from personality.vectors.training.response import keeps_logits
from personality.vectors.training.tokens import Encoded

TARGET = 1.0
"""What scale 1 means: nats of KL(base ‖ steered) at the 95th percentile of the tokens."""

QUANTILE = 0.95

TOLERANCE = 0.02
"""Relative distance from the target at which a search ends."""

EVALUATIONS = 20
"""Most evaluations of one search."""

MOST_TOKENS = 1024
_KEPT_BYTES = 1 << 29
_BATCH_LOGITS = 1 << 26
"""Logits are the largest tensor of a pass: rows × positions × vocabulary in float32, so 256 MB of them at a time."""

_START = 0.25  # of the activations' norm
_GROWTH = 2.0  # of the bracket, each step
_FURTHEST = 64.0  # times the activations' norm: beyond it the direction is all that is left of a position
_NARROW = 1e-4  # relative width of a bracket in which a curve jumps over the target


@dataclass(frozen=True)
class Drift:
    """How a model's predictions differ from the base's, token by token.

    Attributes:
        kl: KL(base ‖ model) = Σ_v p(v) · (log p(v) − log q(v)), nats, float32 (n,); infinite where the model predicts
            NaN.
        nll: −log q of the token that stands there, nats, float32 (n,).
    """

    kl: Tensor
    nll: Tensor

    @property
    def kl_95(self) -> float:
        """95th percentile of the divergence, linear between the two nearest tokens."""
        return percentile(self.kl)


def percentile(values: Tensor, quantile: float = QUANTILE) -> float:
    """A quantile with linear interpolation between order statistics (type 7 of Hyndman and Fan 1996); infinite as soon
    as it touches an infinite value.

    Args:
        values: float (n,), n ≥ 1, no NaN.
        quantile: between 0 and 1.
    """
    ordered = values.double().sort().values
    place = quantile * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    share = place - low
    below, above = float(ordered[low]), float(ordered[high])
    return below if share == 0 or below == above else below + share * (above - below)


class BasePredictions:
    """What the base predicts at the tokens where a vector acts, to compare the steered model with.

    The base's log-probabilities over the whole vocabulary are computed once and kept on the CPU in float32: at most
    512 MB of them, and at most `most_tokens` tokens. Texts beyond that are left out, the last one is cut short.

    Args:
        model: the base, unsteered, in evaluation mode.
        texts: with replies, any number.
        positions: where the vector will act. For `decision` only the prediction at each prompt's last token counts; for
            `response` and `all` every prediction of a token of the reply.
        pad_id: any token id.
        most_tokens: to compare at most.

    Raises:
        DataError: without texts.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[Encoded],
        positions: Positions,
        *,
        pad_id: int = 0,
        most_tokens: int = MOST_TOKENS,
    ) -> None:
        vocabulary = _vocabulary(model)
        self._texts = _within(texts, positions, min(most_tokens, max(1, _KEPT_BYTES // (4 * vocabulary))))
        if not self._texts:
            raise DataError(
                "there is no text to calibrate a steering vector on", "give general examples (`--general FILE`)"
            )
        self._pad = pad_id
        self._base = [_Kept(found.cpu(), targets) for found, targets in self._log_probs(model)]
        self.tokens = sum(len(kept.targets) for kept in self._base)

    @property
    def nll(self) -> Tensor:
        """−log p of the tokens that stand there under the base, nats, float32 (n,)."""
        return torch.cat([-kept.log_probs.gather(1, kept.targets[:, None])[:, 0] for kept in self._base])

    def drift(self, model: nn.Module, acting: Sequence[Injection]) -> Drift:
        """Compare the steered model with the base.

        Args:
            model: the same, unsteered.
            acting: what is added to it.
        """
        divergences, losses = [], []
        with steered(model, acting):
            for kept, (found, targets) in zip(self._base, self._log_probs(model), strict=True):
                base = kept.log_probs.to(found.device)
                # A token that the base excludes (probability 0) counts 0 whatever the model says of it.
                terms = torch.where(base > -torch.inf, base.exp() * (base - found), 0.0)
                divergences.append(terms.sum(-1).clamp_min(0.0).nan_to_num(nan=torch.inf).cpu())
                losses.append(-found.gather(1, targets.to(found.device)[:, None])[:, 0].cpu())
        return Drift(torch.cat(divergences), torch.cat(losses))

    @torch.inference_mode()
    def _log_probs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Batch by batch: log-probabilities float32 (n, V) on the model's device, and the tokens that stand there."""
        device = next(model.parameters()).device
        keeps = keeps_logits(model)
        for batch in self._batches(model):
            ids, mask = padded([text.ids for text in batch], self._pad)
            wanted = torch.zeros_like(ids, dtype=torch.bool)
            for row, text in enumerate(batch):
                wanted[row, text.start : text.stop] = True
            places = wanted.any(0).nonzero()[:, 0]
            arguments: dict[str, Any] = {"logits_to_keep": (places - 1).to(device)} if keeps else {}
            with reply_starts([text.start for text in batch]):
                logits = model(
                    input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **arguments
                ).logits
            logits = logits if keeps else logits[:, places.to(device) - 1]
            chosen = wanted[:, places]
            yield logits[chosen.to(device)].float().log_softmax(-1), ids[:, places][chosen]

    def _batches(self, model: nn.Module) -> Iterator[list[Encoded]]:
        most = max(1, _BATCH_LOGITS // _vocabulary(model))
        batch: list[Encoded] = []
        for text in self._texts:  # by length, so the last one is the longest
            if batch and (len(batch) + 1) * len(text.ids) > most:
                yield batch
                batch = []
            batch.append(text)
        yield batch


@dataclass(frozen=True)
class _Kept:
    log_probs: Tensor  # float32 (n, V)
    targets: Tensor  # int64 (n,)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _within(texts: Sequence[Encoded], positions: Positions, most: int) -> list[Encoded]:
    """The texts that fit, cut to what is compared, shortest first."""
    kept = []
    for text in texts:
        if most <= 0:
            break
        length = 1 if positions == "decision" else min(text.stop - text.start, most)
        stop = text.start + length
        kept.append(Encoded(text.ids[:stop], text.start, stop))
        most -= length
    return sorted(kept, key=lambda text: len(text.ids))


@dataclass(frozen=True)
class Crossing:
    """Where a curve reaches its target.

    Attributes:
        at: the argument.
        value: of the curve there; clearly below the target when it is never reached.
        evaluations: that it took.
    """

    at: float
    value: float
    evaluations: int

    @property
    def reached(self) -> bool:
        """Whether the value is the target, within the tolerance."""
        return abs(self.value / TARGET - 1) <= TOLERANCE


def smallest_crossing(
    curve: Callable[[float], float],
    start: float,
    *,
    most: float,
    target: float = TARGET,
    tolerance: float = TOLERANCE,
    evaluations: int = EVALUATIONS,
) -> Crossing:
    """The smallest argument at which a curve reaches its target.

    A bracket grows by a factor of 2 until it holds the target, and is halved in the logarithm, the halving point drawn
    to where a straight line in log-log coordinates crosses (small shifts have a divergence proportional to their
    square, so that this line is nearly the curve). The curve need not rise everywhere: of several crossings that are
    more than a factor of 2 apart the smallest is found.

    Args:
        curve: from 0 at 0; may be infinite.
        start: a first guess > 0; best too small.
        most: greatest argument that makes sense.
        target: > 0.
        tolerance: relative, in the value.
        evaluations: most of them.

    Returns:
        The crossing; or `most` (or the best that was seen) with its value when the target is not reached.
    """
    seen: dict[float, float] = {}

    def look(at: float) -> float:
        if at not in seen:
            seen[at] = curve(at)
        return seen[at]

    low, high = _bracket(look, min(start, most), most, target, lambda: len(seen) < evaluations)
    if high is None:
        return Crossing(low, seen[low], len(seen))
    pull = False
    while len(seen) < evaluations:
        best = min((low, high), key=lambda at: abs(_off(seen[at], target)))
        if abs(_off(seen[best], target)) <= tolerance or high / low - 1 < _NARROW:
            return Crossing(best, seen[best], len(seen))
        middle = _between(low, high, seen, target, halve=pull)
        pull = not pull
        if look(middle) >= target:
            high = middle
        else:
            low = middle
    nearest = min(seen, key=lambda at: abs(_off(seen[at], target)))
    return Crossing(nearest, seen[nearest], len(seen))


def _bracket(
    look: Callable[[float], float], start: float, most: float, target: float, more: Callable[[], bool]
) -> tuple[float, float | None]:
    """An argument `low` with a value below the target, and high above; None where nothing above was found."""
    if look(start) >= target:
        high = start
        low = high / _GROWTH
        while look(low) >= target and more():
            # Far too strong: a divergence falls with the square, so step as far as that says, not all at once.
            high, low = low, low / _GROWTH**2
        return low, high
    low = start
    while low < most and more():
        high = min(low * _GROWTH, most)
        if look(high) >= target:
            return low, high
        low = high
    return low, None


def _off(value: float, target: float) -> float:
    return value / target - 1 if math.isfinite(value) else math.inf


def _between(low: float, high: float, seen: Mapping[float, float], target: float, *, halve: bool) -> float:
    """A point strictly inside (low, high): on the line through both ends, or halfway, in logarithms."""
    share = 0.5
    below, above = seen[low], seen[high]
    if not halve and below > 0 and math.isfinite(above):
        share = math.log(target / below) / math.log(above / below)
    share = min(max(share, 0.05), 0.95)
    return low * math.exp(share * math.log(high / low))


def calibrate_layer(
    model: nn.Module,
    base: BasePredictions,
    layer: int,
    direction: Tensor,
    positions: Positions,
    mode: Mode,
    *,
    activation: float,
) -> Crossing:
    """The coefficient of one layer's unit direction at which it alone has the strength that scale 1 means.

    Args:
        model: unsteered, in evaluation mode.
        base: its predictions, made for the same positions.
        layer: after which the direction acts.
        direction: float32 (d,), of any length > 0.
        positions, mode: see `Positions` and `Mode`.
        activation: mean norm of the activations there, the natural unit of a shift.

    Returns:
        Where; in mode `project`, whose coefficient is a share, never above 1. A value below the target means that the
        mode cannot do more.
    """
    unit = direction / direction.norm()

    def curve(coefficient: float) -> float:
        return base.drift(model, [Injection(layer, unit * coefficient, positions, mode)]).kl_95

    if mode == "project":
        return smallest_crossing(curve, 1.0, most=1.0)
    return smallest_crossing(curve, _START * activation, most=_FURTHEST * activation)


def calibrate_layers(
    model: nn.Module,
    base: BasePredictions,
    directions: Mapping[int, Tensor],
    positions: Positions,
    mode: Mode,
    *,
    activations: Mapping[int, float],
    on_layer: Callable[[int, int], None] | None = None,
) -> dict[int, Crossing]:
    """`calibrate_layer` for several layers, one by one; directions of length 0 are left out.

    Args:
        model, base, positions, mode: see there.
        directions: by layer.
        activations: mean norm by layer.
        on_layer: called after each layer with how many are done, of how many.
    """
    found = {}
    for number, (layer, direction) in enumerate(sorted(directions.items()), start=1):
        if bool(direction.any()):
            found[layer] = calibrate_layer(
                model, base, layer, direction, positions, mode, activation=activations[layer]
            )
        if on_layer:
            on_layer(number, len(directions))
    return found


def joint_factor(model: nn.Module, base: BasePredictions, vector: SteeringVector) -> Crossing:
    """The factor that makes a vector's default layers together as strong as scale 1 means.

    Args:
        model, base: see `calibrate_layer`.
        vector: calibrated layer by layer; its own factor and its condition are not looked at.

    Returns:
        The factor, with what it reaches. In mode `project` no layer's share goes above 1.
    """
    plain = replace(vector, joint=1.0, gate=None)

    def curve(factor: float) -> float:
        return base.drift(model, injections(replace(plain, joint=factor), 1.0)).kl_95

    count = len(vector.layers)
    if vector.mode == "project":
        greatest = count / max(float(vector.tensors[layer].norm()) for layer in vector.layers)
        return smallest_crossing(curve, greatest, most=greatest)
    # Shifts that do not add up at all would need a factor of `count` each.
    return smallest_crossing(curve, 0.5, most=4.0 * count)
