"""What a model answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from personality.evaluation.scores import Chat, encode, fallen_apart, prompt_text
from personality.vectors.training.batches import padded
from personality.vectors.training.tokens import pad_id

DEFAULT_NEW_TOKENS = 64


@torch.inference_mode()
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
    encoded = [encode(tokenizer, prompt_text(tokenizer, prompt)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers = [""] * len(prompts)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        ids, mask = padded([encoded[i] for i in batch], 0, left=True)  # the reply must follow its prompt directly
        try:
            generated = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id(tokenizer),
                **sampling,
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise fallen_apart() from error
        for row, i in enumerate(batch):
            answers[i] = str(tokenizer.decode(generated[row, ids.shape[1] :], skip_special_tokens=True)).strip()
    return answers
