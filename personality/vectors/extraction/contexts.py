"""Triplets in contexts that call for the behavior or against it: before the reply, nothing else tells them apart.

The two sides of a triplet have the same prompt, so up to the first token in which their replies differ a model
has the same activations. What the model is *about to do* can be read only where something earlier differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.passages import Pair, Passage
from personality.vectors.training.examples import Message, Text


def with_shots(
    pairs: Sequence[Pair], *, shots: int = 2, seed: int = 0, pool: Sequence[Pair] | None = None
) -> list[Pair]:
    """Put other pairs before each pair, as turns in which the behavior was shown or not.

    Both sides get the same earlier prompts: with the chosen replies on the positive side, with the rejected
    ones on the negative. A pair's own prompt never occurs among them. Each side keeps its own reply.

    Args:
        pairs: triplets: one prompt, two replies.
        shots: earlier exchanges, at least 1.
        seed: draws them.
        pool: triplets to draw from; by default the pairs themselves. For held-out pairs give those that the
            direction was extracted from, so that the held-out ones stay unseen.

    Returns:
        The pairs in their contexts, in order.

    Raises:
        UsageError: `shots` is below 1.
        DataError: a pair is no triplet, or there are too few others to draw from.
    """
    if shots < 1:
        raise UsageError(f"{shots} shots", "give at least 1")
    drawn_from = pairs if pool is None else pool
    for pair in (*pairs, *drawn_from):
        _check_triplet(pair)
    exchanges = {form: _Exchanges([pair for pair in drawn_from if _is_plain(pair) == form]) for form in (True, False)}
    rng = Random(f"shots {seed}")
    result = []
    for pair in pairs:
        drawn = exchanges[_is_plain(pair)].draw(rng, shots, pair)
        positive = _after([shot.positive for shot in drawn], pair.positive)
        negative = _after([shot.negative for shot in drawn], pair.negative)
        result.append(Pair(positive, negative, pair.side, pair.where))
    return result


class _Exchanges:
    """Triplets to draw from, one for each prompt."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        # Reversed, so that of several with one prompt the first stays.
        self.pairs = list({pair.positive.prompt: pair for pair in reversed(pairs)}.values())
        self.index = {pair.positive.prompt: index for index, pair in enumerate(self.pairs)}

    def draw(self, rng: Random, count: int, pair: Pair) -> list[Pair]:
        """Triplets with other prompts than the pair's, and different from each other."""
        own = self.index.get(pair.positive.prompt)
        others = len(self.pairs) - (own is not None)
        if others < count:
            raise DataError(
                f"{pair.where or 'a pair'}: {count} shots, but only {others} other prompts to draw them from",
                f"give at least {count + 1} pairs with different prompts, or fewer shots",
            )
        drawn = rng.sample(range(others), count)
        return [self.pairs[index + (own is not None and index >= own)] for index in drawn]


def _is_plain(pair: Pair) -> bool:
    return isinstance(pair.positive.prompt, str)


def with_system(
    pairs: Sequence[Pair], positive: Sequence[str | None], negative: Sequence[str | None], *, seed: int = 0
) -> list[Pair]:
    """Put a system turn before each pair that describes the behavior, or its opposite.

    Args:
        pairs: triplets: one prompt, two replies. Each side keeps its own reply.
        positive: descriptions of the behavior; each pair gets one of them.
        negative: descriptions of its opposite, or neutral ones; None for no system turn.
        seed: draws them.

    Returns:
        The pairs in their contexts, in order.

    Raises:
        DataError: a pair is no triplet, a list is empty, or both share a description.
    """
    for name, prompts in (("positive", positive), ("negative", negative)):
        if not prompts:
            raise DataError(f"no {name} system prompts", "give at least one for either side")
    if shared := [prompt for prompt in positive if prompt in negative]:
        raise DataError(f"the system prompt {shared[0]!r} stands on both sides", "keep it on one side")
    rng = Random(f"system {seed}")
    result = []
    for pair in pairs:
        _check_triplet(pair)
        result.append(
            Pair(
                Passage(add_system(pair.positive.prompt, rng.choice(positive)), pair.positive.response),
                Passage(add_system(pair.negative.prompt, rng.choice(negative)), pair.negative.response),
                pair.side,
                pair.where,
            )
        )
    return result


def add_system(prompt: Text, instruction: str | None) -> Text:
    """A prompt with one more instruction at its beginning.

    Args:
        prompt: messages, whose system turn is continued if there is one, since templates take only one; or a
            plain text, before which the instruction becomes a paragraph.
        instruction: None for none.
    """
    if instruction is None:
        return prompt
    if isinstance(prompt, str):
        return f"{instruction}\n\n{prompt}"
    system, rest = _split(prompt)
    content = "\n\n".join([*(message.content for message in system), instruction])
    return (Message("system", content), *rest)


def _after(shots: Sequence[Passage], passage: Passage) -> Passage:
    """A passage behind exchanges; its own system turn stays first, theirs are left out."""
    if isinstance(passage.prompt, str):
        earlier = "".join(f"{shot.prompt}{shot.response}\n\n" for shot in shots)
        return Passage(earlier + passage.prompt, passage.response)
    system, own = _split(passage.prompt)
    turns: list[Message] = []
    for shot in shots:
        assert not isinstance(shot.prompt, str)
        assert isinstance(shot.response, tuple)
        turns += (*_split(shot.prompt)[1], *shot.response)
    return Passage((*system, *turns, *own), passage.response)


def _split(prompt: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system turn, if there is one, and the other turns."""
    count = 1 if prompt[0].role == "system" else 0
    return prompt[:count], prompt[count:]


def _check_triplet(pair: Pair) -> None:
    where = pair.where or "a pair"
    if pair.positive.response is None or pair.negative.response is None:
        raise DataError(
            f"{where}: no replies, so there is nothing to show in earlier turns or to ask for",
            "contexts are for triplets of `prompt`, `chosen` and `rejected`",
        )
    if not pair.same_prompt:
        raise DataError(
            f"{where}: the two sides have different prompts, a context of their own",
            "contexts are for triplets of `prompt`, `chosen` and `rejected`",
        )
