"""Probes: what is asked, and how to tell what a reply does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from personality.evaluation.judge import Judge
from personality.evaluation.scores import Chat
from personality.manifests.canonical import digest
from personality.manifests.record import Frozen
from personality.manifests.scorer_entry import JudgeEntry, ScorerEntry


class Turn(Frozen):
    """One message of a prompt or reply."""

    role: str
    content: str


class Row(Frozen):
    """One question of a probe.

    Attributes:
        prompt: the chat up to the reply.
        passes: regular expression that `re.search` finds in a reply that does what is measured; `pass` in the file.
        chosen, rejected: replies that do and do not; both or neither.
        contains: texts that the reply must hold, for that scorer.
        json_schema: what the reply must be, for the scorer `json`; `schema` in the file.
        label: the right one, for the scorer `label`.
        reference: what a judge is told of a good reply.
    """

    prompt: tuple[Turn, ...]
    passes: str = ""
    chosen: tuple[Turn, ...] = ()
    rejected: tuple[Turn, ...] = ()
    contains: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    label: str = ""
    reference: str = ""

    @model_serializer(mode="wrap")
    def _without_unused(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out where they say nothing: a suite that needs none of them keeps its digest, and so its results.
        found: dict[str, Any] = default(self)
        return {name: value for name, value in found.items() if name not in _LATER or value}


_LATER = ("contains", "json_schema", "label", "reference")


@dataclass(frozen=True)
class Probe:
    """One thing to measure: rows, and the openings that tell early what a reply will do.

    Attributes:
        name: such as `listening.accept`.
        side: `accept` or `push_back` where the probe is one side of a judgment.
        rows: at least one.
        yes, no: openings of replies.
        scorer: how replies are scored; None for each row's `passes`.
        samples, temperature, seed: replies that are sampled for each row, beside the greedy one.
        asked, asked_as: what brings the displaced habit back; see `ProbeEntry`.
        judge: whom a scorer `judge` asks.
    """

    name: str
    side: str | None
    rows: tuple[Row, ...]
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()
    scorer: ScorerEntry | None = None
    samples: int = 0
    temperature: float = 1.0
    seed: int = 0
    asked: str = ""
    asked_as: str = "system"
    judge: Judge | None = field(default=None, compare=False, repr=False)

    def first(self, count: int | None) -> Probe:
        """The same probe with at most `count` rows."""
        return replace(self, rows=self.rows[:count])

    def at(self, places: Sequence[int]) -> Probe:
        """The same probe with some of its rows, by their places."""
        return replace(self, rows=tuple(self.rows[place] for place in places))

    def prompts(self) -> list[Chat]:
        """Each row's prompt as chat templates take it."""
        return [[turn.as_json() for turn in row.prompt] for row in self.rows]

    def asked_prompts(self) -> list[Chat]:
        """Each row's prompt with the words that ask for the displaced habit."""
        return [_asking(chat, self.asked, self.asked_as) for chat in self.prompts()]

    def as_json(self) -> dict[str, Any]:
        """Everything that determines a result."""
        rows = [row.as_json() for row in self.rows]
        found: dict[str, Any] = {"name": self.name, "side": self.side, "rows": rows, "yes": self.yes, "no": self.no}
        # As with rows: what is not used does not enter.
        if self.scorer is not None:
            found["scorer"] = self.scorer.as_json()
        if isinstance(self.scorer, JudgeEntry):
            found["judge"] = self.judge.model if self.judge is not None else ""
        if self.samples:
            found["sampling"] = {"samples": self.samples, "temperature": self.temperature, "seed": self.seed}
        if self.asked:
            found["asked"] = {"text": self.asked, "as": self.asked_as}
        return found

    @property
    def digest(self) -> str:
        """Identity of what is asked and how it is scored: results of different digests are never compared."""
        return digest(self.as_json())


def _asking(chat: Chat, words: str, where: str) -> list[dict[str, str]]:
    turns = [dict(turn) for turn in chat]
    if where == "suffix":
        turns[-1]["content"] = f"{turns[-1]['content']} {words}"
    elif turns[0]["role"] == "system":
        turns[0]["content"] = f"{turns[0]['content']} {words}"
    else:
        turns.insert(0, {"role": "system", "content": words})
    return turns
