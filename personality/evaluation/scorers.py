"""Scoring replies by what a probe declares."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import jsonschema

from personality.evaluation.judge import Question
from personality.evaluation.probe import Probe, Row
from personality.evaluation.scores import Chat, encode
from personality.manifests.errors import DataError
from personality.manifests.scorer_entry import (
    ContainsEntry,
    JsonEntry,
    JudgeEntry,
    LabelEntry,
    LengthEntry,
    ScorerEntry,
)


@dataclass(frozen=True)
class Score:
    """What one reply is worth.

    Attributes:
        passed: whether it does what is measured.
        value: 0 to 1; between the two only where a judge grades.
    """

    passed: bool
    value: float


def score_replies(
    probe: Probe, rows: Sequence[Row], prompts: Sequence[Chat], replies: Sequence[str], tokenizer: Any
) -> list[Score]:
    """Score replies, in order.

    Args:
        probe: whose scorer it is; not `label`, which has no replies.
        rows: the row of each reply.
        prompts: what each reply answers, for a judge.
        replies: to score.
        tokenizer: of the model, for lengths in tokens.

    Raises:
        DataError, JudgeError: when a judge is needed and gives no verdicts.
    """
    scorer = probe.scorer
    if isinstance(scorer, JudgeEntry):
        if probe.judge is None:
            raise DataError(f"the probe `{probe.name}` needs a judge", "set one under [judge] in persona.toml")
        asked = [Question(p, text, row.reference) for p, text, row in zip(prompts, replies, rows, strict=True)]
        verdicts = probe.judge.verdicts(scorer, asked)
        least = 1.0 if scorer.verdict == "yes-no" else scorer.at_least / 10
        return [Score(value >= least, value) for value in verdicts]
    passed = [_passes(scorer, row, text, tokenizer) for row, text in zip(rows, replies, strict=True)]
    return [Score(found, float(found)) for found in passed]


def _passes(scorer: ScorerEntry | None, row: Row, reply: str, tokenizer: Any) -> bool:
    if scorer is None:
        return bool(re.search(row.passes, reply))
    if isinstance(scorer, ContainsEntry):
        return _contains(scorer, row.contains or scorer.texts, reply)
    if isinstance(scorer, JsonEntry):
        return is_json(reply, scorer.json_schema if row.json_schema is None else row.json_schema)
    if isinstance(scorer, LengthEntry):
        length = length_of(reply, scorer.unit, tokenizer)
        return (scorer.min is None or length >= scorer.min) and (scorer.max is None or length <= scorer.max)
    if isinstance(scorer, LabelEntry | JudgeEntry):
        raise ValueError(f"`{scorer.kind}` does not score one reply by itself")
    assert_never(scorer)


def _contains(scorer: ContainsEntry, texts: Sequence[str], reply: str) -> bool:
    if scorer.ignore_case:
        texts, reply = [text.casefold() for text in texts], reply.casefold()
    found = [text in reply for text in texts]
    return all(found) if scorer.all else any(found)


def is_json(reply: str, schema: dict[str, Any]) -> bool:
    """Whether all of a reply, or all that is inside one code fence, is JSON that a schema allows.

    NaN and Infinity, which Python reads, are no JSON.
    """
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", reply.strip(), re.DOTALL)
    try:
        value = json.loads(fenced.group(1) if fenced else reply, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(validator(schema).is_valid(value))


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def length_of(reply: str, unit: str, tokenizer: Any) -> int:
    """How long a reply is, in `words`, `characters`, `tokens` or `sentences`."""
    if unit == "tokens":
        return len(encode(tokenizer, reply))
    if unit == "sentences":
        return len([part for part in re.split(r"[.!?][\"')\]]*(?:\s+|$)", reply.strip()) if part])
    return len(reply.split()) if unit == "words" else len(reply)
