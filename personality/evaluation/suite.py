"""Probes: what is asked, and how to tell what a reply does."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from personality.manifests.behavior_file import ProbeEntry
from personality.manifests.canonical import digest
from personality.manifests.errors import DataError, NotFoundError
from personality.manifests.names import inside
from personality.manifests.record import Frozen, explain
from personality.manifests.repository import Repository
from personality.manifests.toml_text import parse_toml, validate

GENERAL = "suites/general.toml"
"""The suite of abilities that every behavior must leave alone."""


class Turn(Frozen):
    """One message of a prompt or reply."""

    role: str
    content: str


class Row(Frozen):
    """One question of a probe.

    Attributes:
        prompt: the chat up to the reply.
        passes: regular expression that `re.search` finds in a reply that does what is measured.
        chosen, rejected: replies that do and do not; both or neither.
    """

    prompt: tuple[Turn, ...]
    passes: str
    chosen: tuple[Turn, ...] = ()
    rejected: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Probe:
    """One thing to measure: rows, and the openings that tell early what a reply will do."""

    name: str
    side: str | None
    rows: tuple[Row, ...]
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()

    def first(self, count: int | None) -> Probe:
        """The same probe with at most `count` rows."""
        return Probe(self.name, self.side, self.rows[:count], self.yes, self.no)

    def as_json(self) -> dict[str, Any]:
        """Everything that determines a result."""
        rows = [row.as_json() for row in self.rows]
        return {"name": self.name, "side": self.side, "rows": rows, "yes": self.yes, "no": self.no}


class _SuiteFile(Frozen):
    description: str = ""
    probes: tuple[ProbeEntry, ...] = ()


def read_suite(repository: Repository, behaviors: list[str] | None = None, rows: int | None = None) -> list[Probe]:
    """The probes of some behaviors and of general ability.

    Args:
        repository: where.
        behaviors: names; None for every behavior that has probes.
        rows: at most so many rows of each probe.

    Raises:
        NotFoundError: when a behavior or a probe's file does not exist.
        DataError: naming file and line, when a row is wrong.
    """
    files = repository.behaviors()
    names = sorted(files) if behaviors is None else behaviors
    probes = []
    for name in names:
        if name not in files:
            raise NotFoundError(
                f"there is no behaviors/{name}.toml", f"write one with [[probes]], or leave `{name}` out"
            )
        probes += [_read_probe(repository, "behaviors", name, entry) for entry in files[name].probes]
    text = repository.text(GENERAL)
    if text is not None:
        entries = validate(_SuiteFile, parse_toml(text, GENERAL), GENERAL).probes
        probes += [_read_probe(repository, "suites", "general", entry) for entry in entries]
    names_seen = [probe.name for probe in probes]
    twice = sorted({name for name in names_seen if names_seen.count(name) > 1})
    if twice:
        raise DataError(f"two probes bear the name `{twice[0]}`", "give each probe of a behavior its own name")
    return [probe.first(rows) for probe in probes]


def suite_digest(probes: list[Probe]) -> str:
    """Identity of a suite: results of different suites are never compared."""
    return digest([probe.as_json() for probe in probes])


def _read_probe(repository: Repository, folder: str, owner: str, entry: ProbeEntry) -> Probe:
    name = f"{owner}.{entry.name}"
    path = inside(repository.root / folder, entry.file)
    if not path.is_file():
        raise NotFoundError(
            f"the probe `{name}` needs {path}, which is not there",
            f"restore the file, or edit {folder}/{owner}.toml",
        )
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}", "save the file as UTF-8") from error
    rows = []
    # Not splitlines: a text in JSON may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_read_row(line, f"{folder}/{entry.file}:{number}"))
    if not rows:
        raise DataError(f"{path} has no rows", "a probe needs at least one line of JSON")
    openings = (*entry.yes, *entry.no)
    pairs = itertools.permutations(openings, 2)
    clash = [(a, b) for a, b in pairs if b.startswith(a)]
    if clash or bool(entry.yes) != bool(entry.no):
        what = f"the opening {clash[0][0]!r} begins {clash[0][1]!r}" if clash else "it has only one of `yes` and `no`"
        raise DataError(
            f"the probe `{name}`: {what}, so their probabilities cannot be compared",
            f"edit {folder}/{owner}.toml",
        )
    return Probe(name, entry.side, tuple(rows), entry.yes, entry.no)


def _read_row(line: str, where: str) -> Row:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno})", "a row is one JSON object on one line"
        ) from error
    if isinstance(data, dict):
        data = {"passes" if key == "pass" else key: value for key, value in data.items()}
    try:
        row = Row.model_validate(data)
        re.compile(row.passes)
    except ValidationError as error:
        raise DataError(
            f"{where}: {explain(error)}",
            "a row has `prompt`, `pass` and, if you like, `chosen` and `rejected`",
        ) from error
    except re.error as error:
        raise DataError(f"{where}: `pass` is not a regular expression: {error}") from error
    if bool(row.chosen) != bool(row.rejected) or not row.prompt:
        raise DataError(f"{where}: it needs a prompt, and both `chosen` and `rejected` or neither")
    return row
