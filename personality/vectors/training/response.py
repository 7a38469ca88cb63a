"""What a model gives to the answers of a batch."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.training.objectives import token_log_probs


def keeps_logits(model: nn.Module) -> bool:
    """Whether a model can restrict logits to given positions.

    Logits are the largest tensor of a training step, and those over prompts are not needed.

    Args:
        model: causal language model, possibly inside PEFT's wrapper, whose own `forward` takes anything.
    """
    inner = getattr(model, "get_base_model", None)
    return "logits_to_keep" in inspect.signature((inner() if callable(inner) else model).forward).parameters


def response_logits(model: nn.Module, inputs: dict[str, Tensor], *, keep_logits: bool) -> tuple[Tensor, Tensor, Any]:
    """Predictions for a batch's tokens where any row has a response.

    Args:
        model: causal language model over V tokens.
        inputs: from `collate`, T positions.
        keep_logits: from `keeps_logits`.

    Returns:
        logits (B, K, V) for the tokens at the K positions, those positions int64 (K,), and the model's output.
    """
    targets = inputs["response_mask"].any(dim=0).nonzero().squeeze(-1)  # never 0: a response has a prompt before it
    arguments: dict[str, Any] = {"logits_to_keep": targets - 1} if keep_logits else {}
    with reply_starts(inputs["response_mask"].int().argmax(1)):  # the first True
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, **arguments
        )
    return outputs.logits if keep_logits else outputs.logits[:, targets - 1], targets, outputs


def response_log_probs(model: nn.Module, inputs: dict[str, Tensor], *, keep_logits: bool) -> tuple[Tensor, Tensor, Any]:
    """Log-probabilities of a batch's tokens where any row has a response.

    Args:
        model: causal language model.
        inputs: from `collate`, T positions.
        keep_logits: from `keeps_logits`.

    Returns:
        log-probabilities float32 (B, K), response mask bool (B, K) over the K positions kept, and the
        model's output.
    """
    logits, targets, outputs = response_logits(model, inputs, keep_logits=keep_logits)
    return token_log_probs(logits, inputs["input_ids"][:, targets]), inputs["response_mask"][:, targets], outputs
