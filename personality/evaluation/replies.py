"""What a model answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from personality.evaluation.scores import Chat, encode, fallen_apart, prompt_text

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
        width = max(len(encoded[i]) for i in batch)
        # Left padding: the reply must follow its prompt directly.
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, width - len(encoded[i]) :] = torch.tensor(encoded[i])
            mask[row, width - len(encoded[i]) :] = 1
        try:
            generated = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                pad_token_id=_padding(tokenizer),
                **sampling,
            )
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise fallen_apart() from error
        for row, i in enumerate(batch):
            answers[i] = str(tokenizer.decode(generated[row, width:], skip_special_tokens=True)).strip()
    return answers


def _padding(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
