"""Rows of probes and of general text, read from JSONL with errors that name file and line."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
from pydantic import ValidationError

from personality.evaluation.probe import Row, Turn
from personality.manifests.errors import DataError
from personality.manifests.record import explain
from personality.manifests.scorer_entry import ContainsEntry, JsonEntry, LabelEntry, ScorerEntry


def read_row(line: str, where: str, scorer: ScorerEntry | None) -> Row:
    """A row of a probe.

    Args:
        line: its JSON.
        where: file and line, for errors.
        scorer: of the probe; None for `pass`.

    Raises:
        DataError: when it is not a row, or lacks what its scorer needs.
    """
    data = _read_json(line, where)
    if isinstance(data, dict):
        data = {_FIELDS.get(key, key): value for key, value in data.items()}
    try:
        row = Row.model_validate(data)
    except ValidationError as error:
        raise DataError(
            f"{where}: {explain(error)}",
            "a row has `prompt`, what its scorer needs (`pass` if none is declared) and, if you like, `chosen` and "
            "`rejected`",
        ) from error
    if bool(row.chosen) != bool(row.rejected) or not row.prompt:
        raise DataError(f"{where}: it needs a prompt, and both `chosen` and `rejected` or neither")
    wrong = _wrong(row, scorer, has_pattern="passes" in data)
    if wrong:
        raise DataError(f"{where}: {wrong}", "docs/evaluation.md says what each scorer needs")
    return row


def _wrong(row: Row, scorer: ScorerEntry | None, *, has_pattern: bool) -> str:
    """What a row lacks that its probe's scorer needs; empty when nothing."""
    if scorer is None:
        if not has_pattern:
            return "passes: Field required: it has no `pass`, and its probe declares no other scorer"
        try:
            re.compile(row.passes)
        except re.error as error:
            return f"`pass` is not a regular expression: {error}"
    elif isinstance(scorer, ContainsEntry) and not (row.contains or scorer.texts):
        return "it has no `contains`, and its probe's scorer no `texts`"
    elif isinstance(scorer, LabelEntry) and row.label not in scorer.labels:
        return f"its `label` is {row.label!r}, which is none of {', '.join(map(repr, scorer.labels))}"
    elif isinstance(scorer, JsonEntry):
        schema = scorer.json_schema if row.json_schema is None else row.json_schema
        if not schema:
            return "it has no `schema`, and neither has its probe's scorer"
        try:
            jsonschema.validators.validator_for(schema).check_schema(schema)
        except jsonschema.SchemaError as error:
            return f"`schema` is not a JSON Schema: {error.message}"
        if far := _far_reference(schema):
            return f"`schema` refers to {far!r}: a schema must be whole, nothing is fetched"
    return ""


def _far_reference(schema: Any) -> str:
    """A reference that leads out of a schema; empty when there is none."""
    if isinstance(schema, list):
        return next((found for item in schema if (found := _far_reference(item))), "")
    if not isinstance(schema, dict):
        return ""
    for key in ("$ref", "$dynamicRef"):
        if isinstance(schema.get(key), str) and not schema[key].startswith("#"):
            return str(schema[key])
    return _far_reference(list(schema.values()))


_FIELDS = {"pass": "passes", "schema": "json_schema"}


def read_text(line: str, where: str) -> Row:
    """A row of general text: `{"text": …}`, or a chat's `prompt` and `chosen` (or `completion`)."""
    data = _read_json(line, where)
    try:
        if isinstance(data, dict) and set(data) == {"text"} and isinstance(data["text"], str) and data["text"]:
            return Row(prompt=(), chosen=(Turn(role="text", content=data["text"]),))
        if isinstance(data, dict) and set(data) in ({"prompt", "chosen"}, {"prompt", "completion"}):
            chosen = data.get("chosen", data.get("completion"))
            row = Row.model_validate({"prompt": data["prompt"], "chosen": chosen})
            if row.prompt and row.chosen:
                return row
    except ValidationError as error:
        raise DataError(f"{where}: {explain(error)}", _TEXT_HINT) from error
    raise DataError(f"{where}: neither a text nor a prompt with a reply", _TEXT_HINT)


_TEXT_HINT = "a row of general text has `text` alone, or `prompt` and `chosen`"


def _read_json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno})", "a row is one JSON object on one line"
        ) from error
