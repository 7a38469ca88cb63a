"""Whether a server answers as a version does: asked over HTTP, held against the version's reference."""

from __future__ import annotations

from dataclasses import dataclass

from personality.builds.comparison import Agreement
from personality.builds.reference import Reference, Row, compare
from personality.manifests.errors import IncompatibleError
from personality.serving.client import Client, ServedModel


@dataclass(frozen=True)
class Verification:
    """A server's answers beside a version's.

    Attributes:
        agreement: greatest |Δ log-probability| in nats, share of equal greedy tokens, positions.
        allowed: the greatest difference at which the server counts as serving the version, nats.
        dtype: in which the server computes; empty when it does not tell, which is taken for bfloat16.
        left_out: prompts too long for the server.
    """

    agreement: Agreement
    allowed: float
    dtype: str
    left_out: int = 0

    @property
    def ok(self) -> bool:
        """Whether the server serves the version."""
        return self.agreement.greatest_difference <= self.allowed

    def __str__(self) -> str:
        relation = "within" if self.ok else "more than"
        same = self.agreement
        return (
            f"log-probabilities differ by up to {same.greatest_difference:.2g} nats ({relation} the {self.allowed:.2g} "
            f"of {self.dtype or 'an unknown dtype'}), greedy tokens agree at {same.greedy:.1%} of {same.positions} "
            "positions"
        )


def verify(client: Client, reference: Reference, *, model: ServedModel, dtype: str) -> Verification:
    """Ask a server what a version was asked, and compare.

    Args:
        client: of the server.
        reference: of the version.
        model: that is served.
        dtype: in which the server computes; empty when that is not known.

    Raises:
        ServerError: when the server fails to answer.
        IncompatibleError: when it takes none of the prompts.
    """
    rows = tuple(row for row in reference.rows if len(row.prompt) + len(row.reply) <= model.max_length)
    if not rows:
        shortest = min(len(row.prompt) + len(row.reply) for row in reference.rows)
        raise IncompatibleError(
            f"{client.url} takes {model.max_length} tokens of prompt and reply, the shortest question has {shortest}",
            f"serve with `--max-model-len {shortest}` or more: otherwise nothing can be verified",
        )
    found = []
    for row in rows:
        answer = client.answer(model.name, row.prompt, len(row.reply))
        found.append(
            Row(
                prompt=row.prompt,
                reply=answer.reply,
                log_probabilities=answer.log_probabilities,
                greedy=answer.greedy,
            )
        )
    same = compare(reference.model_copy(update={"rows": rows}), found)
    return Verification(same, reference.allowed(dtype or "bfloat16"), dtype, len(reference.rows) - len(rows))


def tells_apart(first: Reference, second: Reference, dtype: str) -> bool:
    """Whether a server that passes as the first version cannot be the second: they differ by more than is allowed."""
    if first.prompts != second.prompts:
        return True
    return compare(first, second.rows).greatest_difference > 2 * first.allowed(dtype or "bfloat16")
