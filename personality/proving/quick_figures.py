"""What a steered model would do with a probe, without letting it write: one forward pass over the wanted replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from personality.evaluation.measure import reply_span
from personality.evaluation.scores import opening_probabilities
from personality.evaluation.suite import Probe
from personality.manifests.errors import DataError, PersonaError
from personality.vectors.extraction.capture import default_tokens
from personality.vectors.steering.hooks import steered
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.training.batches import padded
from personality.vectors.training.response import keeps_logits
from personality.vectors.training.tokens import pad_id

SURE = 0.95
"""Probability from which on the base counts as sure of a token: what stands there is content, not manner."""

_BATCH_LOGITS = 1 << 26
"""Rows × kept positions × vocabulary in float32: 256 MB at a time."""


@dataclass(frozen=True)
class QuickFigure:
    """One probe's figures, 0 to 1.

    Attributes:
        probability: mean over the rows of the wanted decision's probability; 0 for rows whose text falls apart.
        share: of the rows in which that probability is above one half, as greedy decoding would have it.
    """

    probability: float
    share: float


class QuickFigures:
    """Figures for probes under any steering, by teacher forcing.

    A row with both replies counts

        σ(logit(c) − logit(r)) at the fork,

    where c and r are the first tokens in which the wanted and the unwanted reply differ, if every other token of the
    wanted reply that the base is sure of (p ≥ 0.95) is still the likeliest one; else 0. So it sees both the decision
    and a text that falls apart. On the playground it is within a few points of what greedy replies give. A row without
    replies counts by the probability of the probe's openings.

    Args:
        model: the base, unsteered, in evaluation mode.
        tokenizer: its tokenizer.
        probes: those whose rows have replies or that have openings; the others have no figure.

    Attributes:
        base: figures of the base by probe.
    """

    def __init__(self, model: Any, tokenizer: Any, probes: Sequence[Probe]) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._pad = pad_id(tokenizer)
        self._forks = [_fork(tokenizer, probe, row) for probe in probes for row in _with_replies(probe)]
        # Replies that begin alike need the logits of few positions when they meet in a batch.
        self._forks.sort(key=lambda fork: (fork.start, len(fork.ids)))
        self._openings = [probe for probe in probes if probe.yes and not any(row.chosen for row in probe.rows)]
        self._sure: list[Tensor] = []
        for batch, logits, targets, wanted in self._passes():
            # Without the softmax of all, which would take as much memory as the logits.
            likely = (logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)).exp()
            sure = wanted & (likely >= SURE)
            for row, (fork, first) in enumerate(batch):
                sure[row, fork.place - first] = False
            self._sure.append(sure)
        self.base = self.measure(())

    def measure(self, acting: Sequence[Injection]) -> dict[str, QuickFigure]:
        """Figures by probe under these injections."""
        found: dict[str, list[float]] = {}
        with steered(self._model, acting):
            for sure, (batch, logits, targets, _) in zip(self._sure, self._passes(), strict=True):
                holds = ((logits.argmax(-1) == targets) | ~sure).all(1)
                rows = torch.arange(len(batch), device=logits.device)
                forks = torch.tensor([(fork.place - first, fork.chosen, fork.rejected) for fork, first in batch])
                place, chosen, rejected = forks.to(logits.device).T
                lead = logits[rows, place, chosen] - logits[rows, place, rejected]
                values = (lead.sigmoid().nan_to_num(0.0) * holds).tolist()
                for (fork, _), value in zip(batch, values, strict=True):
                    found.setdefault(fork.probe, []).append(value)
            for probe in self._openings:
                chats = [[turn.as_json() for turn in row.prompt] for row in probe.rows]
                found[probe.name] = self._opened(probe, chats)
        return {
            name: QuickFigure(sum(values) / len(values), sum(value > 0.5 for value in values) / len(values))
            for name, values in found.items()
        }

    def _opened(self, probe: Probe, chats: list[list[dict[str, str]]]) -> list[float]:
        try:
            return opening_probabilities(self._model, self._tokenizer, chats, probe.yes, probe.no)
        except DataError:
            raise
        except PersonaError:  # the model predicts NaN, which in a search is a result like any other
            return [0.0] * len(chats)

    @torch.inference_mode()
    def _passes(self) -> Iterator[tuple[list[tuple[_Fork, int]], Tensor, Tensor, Tensor]]:
        """Batch by batch: the forks with the token that the first logits predict, logits float32 (B, K, V) that predict
        tokens (B, K) from there on, those tokens, and which of them belong to a reply, bool (B, K); all on the model's
        device, since logits are large.
        """
        device = next(self._model.parameters()).device
        arguments = keeps_logits(self._model)
        for batch in self._batches():
            ids, mask = padded([fork.ids for fork in batch], self._pad)
            first = min(fork.start for fork in batch)
            kept = ids.shape[1] - first + 1
            with reply_starts([fork.start for fork in batch]):
                logits = self._model(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    use_cache=False,
                    **({"logits_to_keep": kept} if arguments else {}),
                ).logits[:, -kept:-1]
            index = torch.arange(first, ids.shape[1])
            starts = torch.tensor([fork.start for fork in batch])
            stops = torch.tensor([len(fork.ids) for fork in batch])
            wanted = (index >= starts[:, None]) & (index < stops[:, None])
            yield [(fork, first) for fork in batch], logits.float(), ids[:, first:].to(device), wanted.to(device)

    def _batches(self) -> Iterator[list[_Fork]]:
        """Forks that meet in one pass, bounded by their tokens and by the logits that are computed of them."""
        most_tokens = default_tokens(self._model)
        most_logits = _BATCH_LOGITS // self._model.get_input_embeddings().num_embeddings
        keeps = keeps_logits(self._model)
        batch: list[_Fork] = []
        longest = 0
        for fork in self._forks:  # by their beginning, so the first one's is that of the batch
            rows, length = len(batch) + 1, max(longest, len(fork.ids))
            kept = length - batch[0].start + 1 if batch and keeps else length
            if batch and (rows * length > most_tokens or rows * kept > most_logits):
                yield batch
                batch, length = [], len(fork.ids)
            batch.append(fork)
            longest = length
        if batch:
            yield batch


@dataclass(frozen=True)
class _Fork:
    """The wanted reply of a row, and where the unwanted one leaves it."""

    probe: str
    ids: tuple[int, ...]  # up to the end of the wanted reply
    start: int  # of the reply
    place: int  # of the first token that differs
    chosen: int
    rejected: int


def _with_replies(probe: Probe) -> list[tuple[int, Any]]:
    return [(number, row) for number, row in enumerate(probe.rows, start=1) if row.chosen]


def _fork(tokenizer: Any, probe: Probe, numbered: tuple[int, Any]) -> _Fork:
    number, row = numbered
    where = f"probe {probe.name}, row {number}"
    chosen = reply_span(tokenizer, row, row.chosen, where)
    rejected = reply_span(tokenizer, row, row.rejected, where)
    ids, other = chosen.ids[: chosen.stop], rejected.ids[: rejected.stop]
    pairs = enumerate(zip(ids, other, strict=False))
    # One reply that goes on where the other ends leaves it at the end-of-turn token, so equal replies alone have none.
    place = next((i for i, (a, b) in pairs if a != b), chosen.start)
    return _Fork(probe.name, ids, chosen.start, place, ids[place], other[place])
