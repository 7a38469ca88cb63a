"""From a file of pairs to what a direction can be read from: each context and position that suits the pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from personality.making.extraction_job import Context, ExtractionJob
from personality.manifests.canonical import digest
from personality.manifests.errors import DataError, UsageError
from personality.vectors.extraction.contexts import with_shots, with_system
from personality.vectors.extraction.formats import Format, PairFile, read_passages
from personality.vectors.extraction.passages import Pair, on_side
from personality.vectors.extraction.reading import Read, ReadPair, read_pairs
from personality.vectors.extraction.system_prompts import read_system_prompts

SystemPrompts = Sequence[tuple[str | None, str | None]]

# What a reply says is read from the reply; what is about to be said, only where something earlier differs.
_READS: dict[Context, tuple[Read, ...]] = {
    "answers": ("response",),
    "shots": ("divergence", "decision"),
    "system": ("divergence", "decision"),
}
_FIXED: dict[Format, tuple[Literal["answers", "system", "texts"], Read]] = {
    "texts": ("texts", "content"),
    "multiple-choice": ("answers", "content"),
    "system-prompts": ("system", "decision"),
}


@dataclass(frozen=True)
class RawPairs:
    """A file's pairs, parted before anything is made of them.

    Attributes:
        file: what was read.
        learn: pairs to read the direction from.
        test: pairs that only test it.
        prompts: contrastive system prompts; empty without.
    """

    file: PairFile
    learn: list[Pair]
    test: list[Pair]
    prompts: SystemPrompts


@dataclass(frozen=True)
class ContrastPairs:
    """Pairs in one context, read at one position.

    Attributes:
        context, read: which.
        learn, test: with token positions.
        degenerate: pairs that say nothing, one line each.
    """

    context: Literal["answers", "shots", "system", "texts"]
    read: Read
    learn: list[ReadPair]
    test: list[ReadPair]
    degenerate: list[str]

    @property
    def name(self) -> str:
        """Such as `shots/divergence`."""
        return f"{self.context}/{self.read}"


def read_raw_pairs(job: ExtractionJob, *, chat: bool) -> RawPairs:
    """Read a job's pairs and part them.

    Args:
        job: which file, which side, how many.
        chat: whether the base has a chat template.

    Raises:
        DataError, NotFoundError: for files that cannot be used, naming file and line; for fewer than 4 pairs.
    """
    file = read_passages(job.pairs, form=job.form, chat=chat)
    pairs = on_side(file.pairs, job.side)[: job.examples]
    if len(pairs) < 4:
        raise DataError(
            f"{job.pairs} gives {len(pairs)} pairs: at least 4 are needed, some of them to test the direction with",
            "give more pairs; some dozens are usual",
        )
    learn, test = _parted(pairs, job.held_out, job.seed)
    return RawPairs(file, learn, test, read_system_prompts(job.prompts) if job.prompts is not None else [])


def _parted(pairs: Sequence[Pair], held_out: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from and to test with: by what is asked and not by place, so that the same pairs are parted alike
    in whatever order they are listed, and no question is in both parts.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        prompt = pair.positive.prompt
        groups.setdefault(digest([seed, prompt if isinstance(prompt, str) else prompt[-1].content]), []).append(pair)
    if len(groups) < 2:
        raise DataError("all pairs ask the same: none can be held out that is not learned from", "ask different things")
    wanted = held_out * len(pairs)
    test: set[str] = set()
    for key in sorted(groups)[:-1]:
        if test and sum(len(groups[name]) for name in test) + len(groups[key]) > wanted:
            break
        test.add(key)
    held = {id(pair) for key in test for pair in groups[key]}
    return [pair for pair in pairs if id(pair) not in held], [pair for pair in pairs if id(pair) in held]


def contrast_pairs(job: ExtractionJob, raw: RawPairs, tokenizer: Any, max_length: int) -> list[ContrastPairs]:
    """Every contrast that the pairs allow and the job asks for, the most telling first.

    Raises:
        UsageError: a context or position that this kind of file does not have.
        DataError: when none can be read; the message says why.
    """
    found, problems = [], []
    for context, read in _wanted(job, raw):
        try:
            found.append(_contrast(job, raw, tokenizer, max_length, context, read))
        except DataError as error:
            problems.append((f"{context}, read at `{read}`", error))
    if not found:
        where, first = problems[0]
        raise DataError(f"{where}: {first.message}", first.hint) from first
    return found


def _wanted(job: ExtractionJob, raw: RawPairs) -> Iterable[tuple[Literal["answers", "shots", "system", "texts"], Read]]:
    form = raw.file.form
    if form != "triplets":
        context, read = _FIXED[form]
        if job.context not in (None, context):
            raise UsageError(
                f"{job.pairs} holds {form}: there is no context `{job.context}`",
                "contexts are for triplets (`prompt`, `chosen`, `rejected`)",
            )
        return [(context, job.read or read)]
    if job.context == "system" and not raw.prompts:
        raise UsageError(
            "the context `system` needs system prompts", "give them: `--prompts FILE` (docs/steering.md shows how)"
        )
    contexts: tuple[Context, ...] = ("system", "shots", "answers") if raw.prompts else ("shots", "answers")
    if job.context is not None:
        contexts = (job.context,)
    elif job.read in ("decision", "divergence"):
        contexts = tuple(context for context in contexts if context != "answers")
    return [(context, read) for context in contexts for read in ((job.read,) if job.read else _READS[context])]


def _contrast(
    job: ExtractionJob,
    raw: RawPairs,
    tokenizer: Any,
    max_length: int,
    context: Literal["answers", "shots", "system", "texts"],
    read: Read,
) -> ContrastPairs:
    learn, test = raw.learn, raw.test
    if context == "shots":
        # Held-out pairs see only shots that the direction was read from.
        learn = with_shots(raw.learn, shots=job.shots, seed=job.seed)
        test = with_shots(raw.test, shots=job.shots, seed=job.seed + 1, pool=raw.learn)
    elif context == "system" and raw.file.form == "triplets":
        positive, negative = zip(*raw.prompts, strict=True)
        learn = with_system(raw.learn, positive, negative, seed=job.seed)
        test = with_system(raw.test, positive, negative, seed=job.seed + 1)
    learned, lost = read_pairs(tokenizer, learn, read, max_length=max_length)
    tested, also_lost = read_pairs(tokenizer, test, read, max_length=max_length)
    return ContrastPairs(context, read, learned, tested, [*lost, *also_lost])
