"""Gradient through the answer only, on top of a context that was read without one.

The prompt but for its last token is the *context*. It goes through the model once, without gradient, and leaves
keys, values and recurrent states behind; the prompt's last token and the answer, the *decision block*, continue
from there with gradient. The log-probabilities are those of a full pass; their gradient lacks what would reach the
weights by way of the context's positions. The context is as old as the weights that read it: it is read anew in
every step and never kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from personality.manifests.errors import UsageError
from personality.vectors.steering.reply_starts import reply_starts
from personality.vectors.training.batches import BatchItem, padded
from personality.vectors.training.frozen_cache import FrozenCache
from personality.vectors.training.objectives import token_log_probs
from personality.vectors.training.tokens import Encoded, EncodedExample

# A single position takes another path in recurrent layers: it writes into the convolution's state and ignores the
# attention mask. So neither part is ever narrower.
_LEAST_WIDTH = 2

# Nats per token by which the two passes may differ, in float32 (where it is about 1e-6) and in coarser dtypes.
_CLOSE, _CLOSE_ROUNDED = 1e-3, 0.1


def collate_frozen(item: BatchItem, pad_id: int) -> dict[str, Tensor]:
    """Make tensors of a batch, its prompts apart from its answers.

    Contexts are padded on the left, since padding after a context would go on changing a recurrent state; decision
    blocks on the right.

    Args:
        item: the batch; either all or none of the behavior's examples have a rejected answer.
        pad_id: any token id; it is masked everywhere.

    Returns:
        `context_ids` and `context_mask` int64 (C, S), each distinct context once, in order of appearance; a prompt
        of one token has an empty one. `context_row` int64 (B,), which of them each row continues. `input_ids` and
        `attention_mask` int64 (B, T), the prompt's last token and the answer; `response_mask` bool (B, T), the
        answer; and `pairs` int64 (), the number of pairs. Rows are those of `collate`.
    """
    rejected = [example.rejected for example in item.behavior if example.rejected is not None]
    rows: list[Encoded] = [*(example.chosen for example in (*item.behavior, *item.general)), *rejected]
    contexts: dict[tuple[int, ...], int] = {}
    places = [contexts.setdefault(row.ids[: row.start - 1], len(contexts)) for row in rows]
    blocks = [row.ids[row.start - 1 : row.stop] for row in rows]
    context_ids, context_mask = padded(list(contexts), pad_id, least=_LEAST_WIDTH, left=True)
    # The last column is only ever a target, so the model sees one less.
    input_ids, attention_mask = padded(blocks, pad_id, least=_LEAST_WIDTH + 1)
    response_mask = attention_mask.bool()
    response_mask[:, 0] = False
    return {
        "context_ids": context_ids,
        "context_mask": context_mask,
        "context_row": torch.tensor(places, dtype=torch.int64),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "response_mask": response_mask,
        "pairs": torch.tensor(len(rejected)),
    }


def frozen_response_log_probs(
    model: nn.Module, inputs: dict[str, Tensor], *, keep_logits: bool
) -> tuple[Tensor, Tensor, Any]:
    """Log-probabilities of a batch's answers, with gradient through the decision blocks alone.

    Args:
        model: causal language model of transformers, wrapped by PEFT or for several devices or not.
        inputs: from `collate_frozen`; other entries are ignored.
        keep_logits: the model can restrict logits to given positions; those over contexts are not needed.

    Returns:
        log-probabilities float32 (B, T - 1), response mask bool (B, T - 1) and the model's output over the decision
        blocks.

    Raises:
        UsageError: the model did not read the context (gradient checkpointing makes it drop it), or keeps it in a
            way that cannot be frozen.
    """
    context_mask, rows = inputs["context_mask"], inputs["context_row"]
    filled = DynamicCache(config=_config(model))
    only_last: dict[str, Any] = {"logits_to_keep": 1} if keep_logits else {}
    width = context_mask.shape[1]
    # Where a model is steered: prompts end at the first token of the decision blocks, behind the whole context.
    with torch.no_grad(), reply_starts([width + 1] * len(context_mask)):
        model(
            input_ids=inputs["context_ids"],
            attention_mask=context_mask,
            position_ids=(context_mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=filled,
            use_cache=True,
            **only_last,
        )
    cache = FrozenCache(filled, rows)
    block_mask = inputs["attention_mask"][:, :-1]
    lengths = context_mask.sum(-1)[rows]
    places = lengths.unsqueeze(-1) + torch.arange(block_mask.shape[1], device=block_mask.device)
    with reply_starts([width + 1] * len(rows)):
        outputs = model(
            input_ids=inputs["input_ids"][:, :-1],
            attention_mask=torch.cat([context_mask[rows], block_mask], dim=-1),
            position_ids=places * block_mask,  # padding must not ask for positions that the model does not have
            past_key_values=cache,
            use_cache=True,
        )
    if not cache.reads:
        raise UsageError(
            "the model did not read the frozen context",
            "gradient checkpointing makes it drop the context: turn that off, or train with `--context full`",
        )
    return token_log_probs(outputs.logits, inputs["input_ids"][:, 1:]), inputs["response_mask"][:, 1:], outputs


def check_frozen_context(model: nn.Module, pad_id: int) -> None:
    """Compare a frozen pass with a full one, on a few tokens, before anything is built on it.

    Args:
        model: as for `frozen_response_log_probs`; it comes back in the mode in which it was.
        pad_id: any token id.

    Raises:
        UsageError: the architecture cannot continue from a context, or does so with another result.
    """
    ids = tuple(index % 7 + 1 for index in range(13))
    examples = tuple(EncodedExample(Encoded(ids=ids[:stop], start=stop - 4, stop=stop), None) for stop in (13, 7))
    inputs = {
        name: tensor.to(_device(model)) for name, tensor in collate_frozen(BatchItem(examples, ()), pad_id).items()
    }
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found, mask, _ = frozen_response_log_probs(model, inputs, keep_logits=False)
            wanted = torch.cat([_full_log_probs(model, example.chosen, mask.device) for example in examples])
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UsageError(
            f"{type(model).__name__} cannot continue from a frozen context: {error}", "train with `--context full`"
        ) from error
    finally:
        model.train(training)
    apart = float((found[mask] - wanted.flatten()).abs().mean())
    if not apart <= (_CLOSE if next(model.parameters()).dtype == torch.float32 else _CLOSE_ROUNDED):
        raise UsageError(
            f"{type(model).__name__} continues from a frozen context with log-probabilities that are {apart:.2g} nats "
            "from those of a full pass",
            "train with `--context full`",
        )


def _full_log_probs(model: nn.Module, row: Encoded, device: torch.device) -> Tensor:
    """Float32 (1, R): what one full pass gives to the R tokens of an answer at the end."""
    ids = torch.tensor([row.ids], device=device)
    with reply_starts([row.start]):
        logits = model(input_ids=ids, use_cache=False).logits
    return token_log_probs(logits[:, row.start - 1 : -1], ids[:, row.start :])


def _device(model: nn.Module) -> torch.device:
    """Where a model's input belongs."""
    return next(model.parameters()).device


def _config(model: nn.Module) -> Any:
    """The configuration of a model, also inside DistributedDataParallel."""
    while not hasattr(model, "config") and isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    return model.config
