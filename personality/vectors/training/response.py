"""What a model gives to the answers of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from personality.vectors.training.objectives import token_log_probs


def response_log_probs(model: nn.Module, inputs: dict[str, Tensor], *, keep_logits: bool) -> tuple[Tensor, Tensor, Any]:
    """Log-probabilities of a batch's tokens where any row has a response.

    Args:
        model: causal language model.
        inputs: from `collate`, T positions.
        keep_logits: the model can restrict logits to given positions. Logits are the largest tensor of a
            training step, and those over prompts are not needed.

    Returns:
        log-probabilities float32 (B, K), response mask bool (B, K) over the K positions kept, and the
        model's output.
    """
    ids, mask = inputs["input_ids"], inputs["response_mask"]
    targets = mask.any(dim=0).nonzero().squeeze(-1)  # never 0: a response has a prompt before it
    arguments: dict[str, Any] = {"attention_mask": inputs["attention_mask"], "use_cache": False}
    if keep_logits:
        arguments["logits_to_keep"] = targets - 1
    outputs = model(input_ids=ids, **arguments)
    logits = outputs.logits if keep_logits else outputs.logits[:, targets - 1]
    return token_log_probs(logits, ids[:, targets]), mask[:, targets], outputs
