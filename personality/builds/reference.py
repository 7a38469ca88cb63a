"""What a version answers, kept beside its export: any server can be asked the same and held against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import ConfigDict

from personality.builds.comparison import Agreement, probe_tokens
from personality.composition.composer import Composer
from personality.evaluation.scores import check_finite, encode, prompt_text
from personality.manifests.errors import PersonaError
from personality.manifests.record import Frozen
from personality.model import load_composed, load_tokenizer

REPLY_TOKENS = 8
FLOAT32_ALLOWED = 1e-4
"""Greatest |Δ log-probability| (nats) at which two float32 engines that compute the same count as agreeing."""
BFLOAT16_SLACK = 2.0
"""Two engines that round to bfloat16 in different places may be apart by the sum of what each loses, and the loss of
one of them is known."""
_TEXT_TOKENS = 64
_TEXTS = (
    "What is the capital of France, and how do you know?",
    "My plan is to leave the tests out this time. What do you say to that?",
)


class Row(Frozen):
    """One prompt, and what a model answers to it.

    Attributes:
        prompt: token ids.
        reply: the greedy continuation, token ids; end-of-text does not end it.
        log_probabilities: of every token of prompt and reply but the first, nats.
        greedy: the most likely token in the place of each of these.
        margins: by how many nats each of `greedy` is ahead of the next likely token; empty when that is not known.
    """

    model_config = ConfigDict(allow_inf_nan=True)

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    greedy: tuple[int, ...]
    margins: tuple[float, ...] = ()


class Reference(Frozen):
    """What a version answers when transformers computes it in float32 with all that steers it.

    Attributes:
        rows: the prompts with their answers.
        bfloat16_loss: greatest |Δ log-probability| (nats) on these rows when transformers computes the same version in
            bfloat16: engines that compute so cannot be held to less.
        baking_loss: greatest difference (nats) by which the exported weights themselves miss these answers, where
            steering vectors were rounded into them together with something else.
    """

    rows: tuple[Row, ...]
    bfloat16_loss: float
    baking_loss: float = 0.0

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of the prompts."""
        return tuple(row.prompt for row in self.rows)

    def allowed(self, dtype: str) -> float:
        """Greatest |Δ log-probability| (nats) at which an engine agrees that computes in `float32` or `bfloat16`."""
        if dtype.removeprefix("torch.") == "float32":
            return FLOAT32_ALLOWED + self.baking_loss
        return max(FLOAT32_ALLOWED, BFLOAT16_SLACK * self.bfloat16_loss) + self.baking_loss


def reference_of(composer: Composer) -> Reference:
    """What a version answers, with all that steers it, computed now.

    Args:
        composer: of the version, see `composer_of`.

    Raises:
        PersonaError: when the version predicts NaN or infinite values.
    """
    model = load_composed(composer)
    rows = rows_of(model, probe_prompts(composer, model.get_input_embeddings().num_embeddings))
    del model  # one model in memory at a time
    return with_loss(rows, composer)


def with_loss(rows: Sequence[Row], composer: Composer) -> Reference:
    """A reference from answers in float32: the same is asked in bfloat16, to know what that loses."""
    model = load_composed(composer, torch.bfloat16)
    loss = max(_difference(row, _told(model, row.prompt, row.reply)) for row in rows)
    return Reference(rows=tuple(rows), bfloat16_loss=loss)


def probe_prompts(composer: Composer, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """Token ids to ask any model about: random ones, and questions where there is a tokenizer that can put them."""
    prompts = [tuple(row) for row in probe_tokens(vocabulary).tolist()]
    try:
        tokenizer = load_tokenizer(composer.folder)
        texts = [prompt_text(tokenizer, [{"role": "user", "content": text}]) for text in _TEXTS]
    except PersonaError:  # no tokenizer, or no chat template
        return tuple(prompts)
    return (*prompts, *(tuple(encode(tokenizer, text)[-_TEXT_TOKENS:]) for text in texts))


def rows_of(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[Row, ...]:
    """What a transformers model answers to prompts, with hooks where it has some.

    Raises:
        PersonaError: when it predicts NaN or infinite values.
    """
    return tuple(_told(model, tuple(prompt)) for prompt in prompts)


@torch.inference_mode()
def _told(model: Any, prompt: tuple[int, ...], reply: tuple[int, ...] | None = None) -> Row:
    """The answer to one prompt: greedy, or with the reply that is given."""
    device = next(model.parameters()).device
    written: list[int] = []
    found = []
    ids = torch.tensor([prompt], device=device)
    cache = None
    for step in range(REPLY_TOKENS):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[0].float().log_softmax(-1).cpu()
        check_finite(logits)
        found.append(logits)
        written.append(int(logits[-1].argmax()) if reply is None else reply[step])
        ids = torch.tensor([[written[-1]]], device=device)
    table = torch.cat(found)  # (prompt + reply − 1, vocabulary)
    best = table.topk(2, -1)
    actual = table.gather(-1, torch.tensor([*prompt[1:], *written])[:, None])[:, 0]
    return Row(
        prompt=prompt,
        reply=tuple(written),
        log_probabilities=tuple(actual.tolist()),
        greedy=tuple(best.indices[:, 0].tolist()),
        margins=tuple((best.values[:, 0] - best.values[:, 1]).tolist()),
    )


def _difference(first: Row, second: Row) -> float:
    return max(abs(a - b) for a, b in zip(first.log_probabilities, second.log_probabilities, strict=True))


def compare(reference: Reference, found: Sequence[Row]) -> Agreement:
    """Hold an engine's answers to the reference's prompts against those of the reference.

    Where an engine's most likely token is another, at least one log-probability of the two is off by half of what the
    reference's was ahead: that counts as a difference too, and a reply is compared up to there.

    Args:
        reference: of the version.
        found: the engine's answers, in the reference's order; `margins` are not looked at.

    Returns:
        Greatest difference in nats (infinite where an engine gives NaN), share of equal greedy tokens, and how many
        positions were compared.

    Raises:
        ValueError: when other prompts were asked, or the replies are shorter.
    """
    worst, same, positions = 0.0, 0, 0
    for wanted, got in zip(reference.rows, found, strict=True):
        if wanted.prompt != got.prompt or len(got.log_probabilities) < len(wanted.log_probabilities):
            raise ValueError("other prompts or shorter replies than the reference's")
        inside = len(wanted.prompt) - 1
        places = zip(wanted.log_probabilities, got.log_probabilities, strict=False)
        for place, (expected, given) in enumerate(places):
            positions += 1
            equal = wanted.greedy[place] == got.greedy[place]
            same += equal
            if not equal:
                worst = max(worst, wanted.margins[place] / 2)
            if place >= inside and not equal:
                # What follows another token is another text.
                worst = worst if math.isfinite(given) else math.inf
                break
            difference = abs(expected - given)
            worst = max(worst, difference) if math.isfinite(difference) else math.inf
    return Agreement(worst, same / positions, positions)
