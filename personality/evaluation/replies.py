"""What a model answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from personality.evaluation.scores import Chat, encode, fallen_apart, prompt_text
from personality.vectors.training.batches import padded
from personality.vectors.training.tokens import pad_id

DEFAULT_NEW_TOKENS = 64


def replies(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Chat],
    *,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 128,
) -> list[str]:
    """The model's answers, without special tokens and surrounding white space.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: chats up to the reply.
        max_new_tokens: longest answer.
        temperature: 0 for greedy; otherwise answers are sampled, the same for the same seed.
        seed: of sampling.
        batch_size: prompts at a time.
    """
    heads = [encode(tokenizer, prompt_text(tokenizer, prompt)) for prompt in prompts]
    found = reply_ids(
        model,
        tokenizer,
        heads,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in found]


@torch.inference_mode()
def reply_ids(
    model: Any,
    tokenizer: Any,
    heads: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 128,
    streamer: Any = None,
) -> list[list[int]]:
    """What the model writes behind prompts, token ids, with the token that ends a reply and any padding behind it.

    Args:
        heads: token ids of prompts up to where the reply begins.
        model, tokenizer, max_new_tokens, temperature, seed, batch_size: as for `replies`.
        streamer: of transformers; told each token as it comes, for one prompt only.
    """
    order = sorted(range(len(heads)), key=lambda i: len(heads[i]))
    answers: list[list[int]] = [[] for _ in heads]
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        ids, mask = padded([heads[i] for i in batch], 0, left=True)  # the reply must follow its prompt directly
        try:
            generated = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id(tokenizer),
                streamer=streamer,
                **sampling,
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise fallen_apart() from error
        for row, i in enumerate(batch):
            answers[i] = generated[row, ids.shape[1] :].tolist()
    return answers


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens at which `generate` ends a reply."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {ends} if isinstance(ends, int) else set(ends or ())
    return found | ({tokenizer.eos_token_id} - {None})


def until_end(reply: list[int], ends: set[int]) -> list[int]:
    """A reply without its end-of-turn token and the padding behind it."""
    stop = next((i for i, token in enumerate(reply) if token in ends), len(reply))
    return reply[:stop]
