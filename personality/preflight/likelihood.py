"""What the base thinks of answers, token by token, and what it says itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from personality.manifests.errors import PersonaError
from personality.vectors.training.batches import BatchItem, collate, padded
from personality.vectors.training.response import keeps_logits, response_log_probs
from personality.vectors.training.tokens import Encoded, EncodedExample, pad_id

Array = np.ndarray
_BATCH_TOKENS = 4096  # larger batches were slower on CPUs
_BATCH_LOGITS = 1 << 26
"""Logits are the largest tensor: tokens × vocabulary in float32, so at most 256 MB of them at a time (or one text)."""


@torch.no_grad()  # not inference_mode: what a model caches in it could not be trained with afterwards
def answer_log_probs(model: Any, encoded: Sequence[Encoded]) -> list[Array]:
    """Log-probabilities of each dialogue's answer tokens, end of turn included.

    Args:
        model: causal language model in evaluation mode.
        encoded: any number; they are batched by length.

    Returns:
        For each, in order, float64 (answer tokens,), nats.

    Raises:
        PersonaError: the model's predictions are not finite.
    """
    device = next(model.parameters()).device
    keeps = keeps_logits(model)
    found: dict[int, Array] = {}
    for rows in _batches(encoded, model.get_input_embeddings().num_embeddings):
        items = tuple(EncodedExample(encoded[row], None) for row in rows)
        batch = {name: value.to(device) for name, value in collate(BatchItem((), items), 0).items()}
        log_probs, mask, _ = response_log_probs(model, batch, keep_logits=keeps)
        picked, inside = log_probs.double().cpu(), mask.cpu()
        for place, row in enumerate(rows):
            found[row] = picked[place][inside[place]].numpy()
            if not np.isfinite(found[row]).all():
                raise PersonaError(
                    "the base gives NaN or infinite log-probabilities: nothing can be trained on it",
                    "check its weights with `persona verify`, or fetch it again",
                )
    return [found[row] for row in range(len(encoded))]


@torch.no_grad()  # not inference_mode: what a model caches in it could not be trained with afterwards
def own_replies(
    model: Any, tokenizer: Any, dialogues: Sequence[Encoded], *, seed: int, new_tokens: int
) -> list[Encoded]:
    """The base's own replies to the prompts of some dialogues, sampled at temperature 1 from the whole vocabulary.

    They stay token ids: decoding and encoding again could change them, and so their probability.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        dialogues: whose prompts, with the header of the answer, are replied to; at least one.
        seed: of sampling. The global generators are left as they were.
        new_tokens: longest reply; one that is not done by then is cut there.

    Returns:
        Prompts with the replies, end of turn included.
    """
    device = next(model.parameters()).device
    special = set(tokenizer.all_special_ids)
    # Replies end where those of the data do, also when the base's own configuration names another token.
    ends = {item.ids[item.stop - 1] for item in dialogues} & special | {tokenizer.eos_token_id} - {None}
    pad = pad_id(tokenizer)
    heads = [item.ids[: item.start] for item in dialogues]
    ids, mask = padded(heads, pad, left=True)  # the reply must follow its prompt directly
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # All said aloud: many bases' generation settings would make the replies likelier than their own.
        generated = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
            use_cache=True,
        )[:, ids.shape[1] :].tolist()
    replies = []
    for head, reply in zip(heads, generated, strict=True):
        stop = next((i + 1 for i, token in enumerate(reply) if token in ends), len(reply))
        replies.append(Encoded(head + tuple(reply[:stop]), len(head), len(head) + stop))
    return replies


def _batches(encoded: Sequence[Encoded], vocabulary: int) -> list[list[int]]:
    """Indices in batches of similar length, none with more logits than the limit unless it is a single text."""
    most = max(1, min(_BATCH_TOKENS, _BATCH_LOGITS // vocabulary))
    batches: list[list[int]] = []
    for row in sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids)):
        if batches and (len(batches[-1]) + 1) * len(encoded[row].ids) <= most:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
