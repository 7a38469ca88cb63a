"""Checkups during training: how far the model has moved from the base, and whether its replies repeat themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from personality.evaluation.repetition import repeated_grams
from personality.evaluation.replies import end_ids, until_end
from personality.manifests.errors import DataError
from personality.vectors.training.batches import BatchItem, collate, padded
from personality.vectors.training.examples import Example
from personality.vectors.training.guard import Checkup
from personality.vectors.training.response import keeps_logits, response_logits
from personality.vectors.training.tokens import Encoded, EncodedExample, Tokenizer, encode, pad_id

_BATCH_LOGITS = 1 << 26
"""Logits are the largest tensor: rows × positions × vocabulary in float32, so at most 256 MB of them at a time."""


class Checkups:
    """What the base predicts and answers on a few held-out examples, to compare a model in training with.

    The Kullback-Leibler divergence is exact: base and model are compared over the whole vocabulary at each response
    token, KL(base ‖ model) = Σ_v p_base(v) · (log p_base(v) − log p_model(v)), and averaged over the tokens. The
    base's log-probabilities are computed once and kept on the CPU: tokens × vocabulary × 4 bytes, 155 MB for 256
    tokens and a vocabulary of 152,000.

    Repetition is seq-rep-4 of greedy replies (Welleck et al. 2019, arXiv 1908.04319, section 5): the share of a
    reply's 4-grams of tokens that occurred in it before, averaged over the replies.

    Args:
        model: the base, before training.
        tokenizer: its tokenizer.
        examples: held-out general examples; those after the first `tokens` response tokens are left out.
        prompts: examples whose prompts are answered (their own answers are not looked at).
        tokens: most response tokens to compare.
        new_tokens: longest reply.
        max_length: most tokens of a dialogue; longer examples are left out.

    Attributes:
        base_repetition: of the base's own replies.
        tokens: response tokens that are compared.

    Raises:
        DataError: when no example is short enough, or there are no prompts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        examples: Sequence[Example],
        prompts: Sequence[Example],
        *,
        tokens: int = 256,
        new_tokens: int = 32,
        max_length: int = 2048,
    ) -> None:
        self._eos = end_ids(model, tokenizer)
        self._pad = pad_id(tokenizer)
        self._new_tokens = new_tokens
        self._texts = _within(_encoded(tokenizer, examples, max_length), tokens)
        self._heads = [item.ids[: item.start] for item in _encoded(tokenizer, prompts, max_length)]
        if not self._texts or not self._heads:
            raise DataError(
                f"no held-out text to check the training with: {len(self._texts)} of {len(examples)} examples and "
                f"{len(self._heads)} of {len(prompts)} prompts have at most {max_length} tokens",
                "give general examples that are shorter, or train without the collapse guard (`--no-guard`)",
            )
        with _undisturbed(model):
            self._base = [found.cpu() for found in self._log_probs(model)]
            self.base_repetition = self._repetition(model)
        self.tokens = sum(len(found) for found in self._base)

    def measure(self, model: Any, step: int) -> Checkup:
        """Compare the model as it is now with the base.

        Its mode (training or not) and the random number generators are left as they were, so training goes on bit for
        bit as if there had been no checkup.

        Args:
            model: in training.
            step: number of the last step, for the record.

        Returns:
            The checkup; kl is NaN or Inf when the model's predictions are.
        """
        total = 0.0
        with _undisturbed(model):
            for kept, found in zip(self._base, self._log_probs(model), strict=True):
                base = kept.to(found.device)
                # A token that the base excludes (probability 0) counts 0 whatever the model says of it.
                terms = torch.where(base > -torch.inf, base.exp() * (base - found), 0.0)
                total += float(terms.sum())
            repetition = self._repetition(model)
        return Checkup(step, total / self.tokens, repetition, self.base_repetition)

    def _log_probs(self, model: Any) -> Iterator[Tensor]:
        """log-probabilities over the vocabulary (response tokens, V), float32, in batches on the model's device."""
        device = next(model.parameters()).device
        keeps = keeps_logits(model)
        for batch in self._batches(model):
            inputs = {name: value.to(device) for name, value in batch.items()}
            logits, targets, _ = response_logits(model, inputs, keep_logits=keeps)
            yield logits[inputs["response_mask"][:, targets]].float().log_softmax(-1)

    def _batches(self, model: Any) -> Iterator[dict[str, Tensor]]:
        vocabulary = model.get_input_embeddings().num_embeddings
        longest = max(len(item.ids) for item in self._texts)
        rows = max(1, _BATCH_LOGITS // (longest * vocabulary))
        for begin in range(0, len(self._texts), rows):
            items = tuple(EncodedExample(item, None) for item in self._texts[begin : begin + rows])
            yield collate(BatchItem((), items), self._pad)

    def _repetition(self, model: Any) -> float:
        """seq-rep-4 of greedy replies; 0 for replies too short to have a 4-gram."""
        device = next(model.parameters()).device
        ids, mask = padded(self._heads, self._pad, left=True)  # the reply must follow its prompt directly
        replies = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=self._new_tokens,
            do_sample=False,
            pad_token_id=self._pad,
            use_cache=True,
        )[:, ids.shape[1] :].tolist()
        return sum(repeated_grams(until_end(reply, self._eos)) for reply in replies) / len(replies)


def _encoded(tokenizer: Tokenizer, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    found = []
    for example in examples:
        with contextlib.suppress(DataError):  # too long; what no run could use, the training itself refuses
            found.append(encode(tokenizer, example.prompt, example.chosen, max_length))
    return found


def _within(encoded: Sequence[Encoded], tokens: int) -> list[Encoded]:
    """The responses' first `tokens` tokens: the last response is cut short where they end."""
    kept = []
    for item in encoded:
        if tokens <= 0:
            break
        stop = min(item.stop, item.start + tokens)
        kept.append(Encoded(item.ids[:stop], item.start, stop))
        tokens -= stop - item.start
    return kept


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradients; every module's mode and the generators of random numbers as they were after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
