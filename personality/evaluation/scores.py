"""Log-probabilities that a model gives to text: of whole replies, and of how a reply opens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from personality.manifests.errors import DataError, FallenApartError
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.training.response import keeps_logits

Chat = Sequence[dict[str, str]]
_BATCH_TOKENS = 16_384
_BATCH_LOGITS = 1 << 27


@dataclass(frozen=True)
class Span:
    """Token ids, and the part [start, stop) whose log-probability is wanted; start ≥ 1."""

    ids: tuple[int, ...]
    start: int
    stop: int


def log_probs(model: Any, spans: Sequence[Span]) -> list[float]:
    """Sum of log-probabilities (nats) of each span's part, by teacher forcing.

    Args:
        model: causal language model in evaluation mode.
        spans: any number; they are batched by length, and the result is in the order given.
    """
    order = sorted(range(len(spans)), key=lambda i: len(spans[i].ids))
    # Logits are the largest tensor: tokens × vocabulary, float32.
    most = max(1, min(_BATCH_TOKENS, _BATCH_LOGITS // model.get_input_embeddings().num_embeddings))
    result = [0.0] * len(spans)
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(spans[index].ids) > most:
            _score(model, spans, batch, result)
            batch = []
        batch.append(index)
    if batch:
        _score(model, spans, batch, result)
    return result


@torch.inference_mode()
def _score(model: Any, spans: Sequence[Span], batch: list[int], result: list[float]) -> None:
    width = max(len(spans[i].ids) for i in batch)
    first = min(spans[i].start for i in batch)
    # Right padding with a causal model: no real token sees a padded one, so no mask is needed for them.
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    wanted = torch.zeros(len(batch), width, dtype=torch.bool)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, i in enumerate(batch):
        span = spans[i]
        ids[row, : len(span.ids)] = torch.tensor(span.ids)
        mask[row, : len(span.ids)] = 1
        wanted[row, span.start : span.stop] = True
    device = next(model.parameters()).device
    # Only positions from the first wanted token on are turned into logits over the vocabulary.
    kept = width - first + 1
    arguments = {"logits_to_keep": kept} if keeps_logits(model) else {}
    with reply_starts([spans[i].start for i in batch]):
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **arguments).logits
    found = logits[:, -kept:-1].float().log_softmax(-1).cpu()
    picked = found.gather(-1, ids[:, first:, None])[..., 0]
    check_finite(picked[wanted[:, first:]])
    totals = torch.where(wanted[:, first:], picked, torch.zeros(())).double().sum(-1)
    for row, i in enumerate(batch):
        result[i] = float(totals[row])


def check_finite(scores: torch.Tensor) -> None:
    """Refuse a model that no longer predicts anything.

    Raises:
        FallenApartError: for NaN or infinite log-probabilities.
    """
    if not bool(torch.isfinite(scores).all()):
        raise fallen_apart()


def fallen_apart() -> FallenApartError:
    """The error for a model whose predictions are no numbers."""
    return FallenApartError(
        "the model predicts NaN or infinite probabilities: it has fallen apart",
        "its scales are too large: `persona scale NAME SMALLER`",
    )


def prompt_text(tokenizer: Any, prompt: Chat) -> str:
    """A chat rendered up to where the reply begins.

    Raises:
        DataError: when the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the base's tokenizer has no chat template, so a chat cannot be put to it",
            "use a base that is tuned for chat, or put its chat_template.jinja into the base's folder",
        )
    return str(tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered chat, which carries its special tokens already."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def opening_text(tokenizer: Any, prompt: Chat, opening: str) -> str:
    """A chat rendered with a reply that has only begun: what the template puts before the reply's first word
    (a space, a line break) is kept, what it puts after the reply is not.

    Raises:
        DataError: when the template renders the prompt otherwise once a reply follows.
    """
    head = prompt_text(tokenizer, prompt)
    turns = [*prompt, {"role": "assistant", "content": opening}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    found = whole.find(opening, len(head))
    if not whole.startswith(head) or found < 0:
        raise DataError(
            "the base's chat template renders a prompt differently once a reply follows: openings cannot be scored",
            "remove `yes` and `no` from the probe; replies and margins are measured without them",
        )
    return whole[: found + len(opening)]


def opening_probabilities(
    model: Any, tokenizer: Any, prompts: Sequence[Chat], yes: Sequence[str], no: Sequence[str]
) -> list[float]:
    """P(yes) / (P(yes) + P(no)) for each prompt, where P sums the exact probabilities of the openings.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: chats up to the reply.
        yes, no: openings, none the beginning of another.
    """
    shares = opening_shares(model, tokenizer, prompts, [*yes, *no])
    return [math.fsum(row[: len(yes)]) for row in shares]


def opening_shares(model: Any, tokenizer: Any, prompts: Sequence[Chat], openings: Sequence[str]) -> list[list[float]]:
    """For each prompt, P(opening) / (sum of P over the openings) of each opening, 0 to 1, by teacher forcing.

    Args:
        model, tokenizer, prompts: as for `opening_probabilities`.
        openings: none the beginning of another.
    """
    spans = []
    for prompt in prompts:
        start = len(encode(tokenizer, prompt_text(tokenizer, prompt)))
        for opening in openings:
            ids = tuple(encode(tokenizer, opening_text(tokenizer, prompt, opening)))
            spans.append(Span(ids, start, len(ids)))
    scores = torch.tensor(log_probs(model, spans), dtype=torch.float64).reshape(len(prompts), len(openings))
    return [[float(x) for x in row] for row in scores.softmax(1)]
