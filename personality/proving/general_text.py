"""The general text that calibrates steering vectors and shows their side effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personality.manifests.errors import DataError
from personality.vectors.training.examples import Example, digest_examples
from personality.vectors.training.tokens import Encoded, Tokenizer, encode

_HELD_OUT = 4  # every fourth example


@dataclass(frozen=True)
class GeneralText:
    """General examples, encoded: most of them to calibrate on, the others to look for side effects.

    Attributes:
        texts: to calibrate on.
        held_out: for side effects; never calibrated on.
        digest: of the examples. Scales compare between vectors that were calibrated on the same ones.
    """

    texts: tuple[Encoded, ...]
    held_out: tuple[Encoded, ...]
    digest: str


def encode_general(tokenizer: Tokenizer, examples: Sequence[Example], *, max_length: int = 2048) -> GeneralText:
    """Encode general examples; the same for all vectors of a repository, in the file's order.

    Args:
        tokenizer: of the base.
        examples: prompts with replies; those that are too long, or that the tokenizer cannot take, are left out.
        max_length: most tokens of a dialogue.

    Raises:
        DataError: when fewer than two can be used.
    """
    used: list[tuple[Example, Encoded]] = []
    first: DataError | None = None
    for example in examples:
        try:
            used.append((example, encode(tokenizer, example.prompt, example.chosen, max_length, where=example.where)))
        except DataError as error:
            first = first or error
    if len(used) < 2:
        why = f"; {first.message}" if first is not None else ""
        raise DataError(
            f"only {len(used)} of {len(examples)} general examples can be calibrated on{why}",
            first.hint if first is not None else "give more general examples: `--general FILE`",
        )
    held_out = [pair for place, pair in enumerate(used) if place % _HELD_OUT == 1]
    return GeneralText(
        texts=tuple(text for place, (_, text) in enumerate(used) if place % _HELD_OUT != 1),
        held_out=tuple(text for _, text in held_out),
        digest=digest_examples([example for example, _ in used]),
    )
