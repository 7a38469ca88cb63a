"""What a base predicts, kept to compare a steered model with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from personality.manifests.errors import DataError
from personality.manifests.steering_record import Positions
from personality.vectors.extraction.capture import default_tokens
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.training.batches import padded
from personality.vectors.training.response import keeps_logits
from personality.vectors.training.tokens import Encoded

QUANTILE = 0.95

MOST_TOKENS = 1024
MOST_DECISIONS = 128
_LEAST_EACH = 16  # tokens that a long text may give, however many texts there are
_KEPT_BYTES = 1 << 29
_BATCH_LOGITS = 1 << 26
"""Logits are the largest tensor of a pass: rows × kept positions × vocabulary in float32, so 256 MB at a time."""


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
    512 MB of them, and at most `most_tokens` tokens. So that a few long replies do not stand for all, each text gives
    at most its even share of these tokens, or 16 where that is less, from the reply's beginning. Texts for which
    nothing is left are left out.

    Args:
        model: the base, unsteered, in evaluation mode.
        texts: with replies, any number.
        positions: where the vector will act. For `decision` only the prediction at each prompt's last token counts, of
            at most 128 texts; for `response` and `all` every prediction of a token of the reply.
        pad_id: any token id.
        most_tokens: to compare at most.

    Attributes:
        tokens: that are compared.
        count: of the texts that they are from.

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
        self.count = len(self._texts)
        self.tokens = sum(len(kept.targets) for kept in self._base)

    @property
    def nll(self) -> Tensor:
        """−log p of the tokens that stand there under the base, nats, float32 (n,)."""
        return torch.cat([-kept.log_probs.gather(1, kept.targets[:, None])[:, 0] for kept in self._base])

    @property
    def lengths(self) -> list[int]:
        """Tokens that each text gives, in the order in which they are compared: by where the reply begins and ends."""
        return [text.stop - text.start for text in self._texts]

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
                divergences.append(terms.sum(-1).clamp_min(0.0).nan_to_num(nan=torch.inf, posinf=torch.inf).cpu())
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
        """Texts that meet in one pass, bounded by their tokens and by the logits that are computed of them."""
        most_tokens, most_logits = default_tokens(model), _BATCH_LOGITS // _vocabulary(model)
        keeps = keeps_logits(model)
        batch: list[Encoded] = []
        longest, places = 0, set[int]()
        for text in self._texts:
            rows = len(batch) + 1
            length, kept = max(longest, len(text.ids)), places | set(range(text.start, text.stop))
            if batch and (rows * length > most_tokens or rows * (len(kept) if keeps else length) > most_logits):
                yield batch
                batch = []
                length, kept = len(text.ids), set(range(text.start, text.stop))
            batch.append(text)
            longest, places = length, kept
        yield batch


@dataclass(frozen=True)
class _Kept:
    log_probs: Tensor  # float32 (n, V)
    targets: Tensor  # int64 (n,)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _within(texts: Sequence[Encoded], positions: Positions, most: int) -> list[Encoded]:
    """The texts that fit, cut to what is compared; in the order in which their replies begin, so that those that meet
    in a batch need the logits of few positions.
    """
    each = max(_LEAST_EACH, math.ceil(most / max(1, len(texts))))
    if positions == "decision":
        each, most = 1, min(most, MOST_DECISIONS)
    kept = []
    for text in texts:
        if most <= 0:
            break
        length = min(text.stop - text.start, each, most)
        stop = text.start + length
        kept.append(Encoded(text.ids[:stop], text.start, stop))
        most -= length
    return sorted(kept, key=lambda text: (text.start, text.stop))
