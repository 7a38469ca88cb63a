"""Suites: the probes of behaviors and of general ability, as their files say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from personality.evaluation.judge import Judge
from personality.evaluation.probe import Probe, Row, Turn
from personality.evaluation.rows import read_row, read_text
from personality.manifests.behavior_file import ProbeEntry
from personality.manifests.canonical import digest
from personality.manifests.errors import DataError, NotFoundError
from personality.manifests.names import inside
from personality.manifests.record import Frozen
from personality.manifests.repository import Repository
from personality.manifests.scorer_entry import LabelEntry
from personality.manifests.toml_text import parse_toml, validate

__all__ = ["GENERAL", "Probe", "Row", "Turn", "general_text", "read_suite", "suite_digest"]

GENERAL = "suites/general.toml"
"""The suite of abilities that every behavior must leave alone."""


class _SuiteFile(Frozen):
    description: str = ""
    text: str = ""
    probes: tuple[ProbeEntry, ...] = ()


def read_suite(
    repository: Repository,
    behaviors: list[str] | None = None,
    rows: int | None = None,
    suites: Sequence[str] = (),
    samples: int | None = None,
) -> list[Probe]:
    """The probes of some behaviors and of general ability, or of other suites.

    Args:
        repository: where.
        behaviors: names; None for every behavior that has probes.
        rows: at most so many rows of each probe.
        suites: names of files in `suites/`, or paths of such files: only their probes, and those of `behaviors` where
            these are named too.
        samples: replies to sample for each row; None for what each probe says.

    Raises:
        NotFoundError: when a behavior, a suite or a probe's file does not exist.
        DataError: naming file and line, when a row is wrong.
    """
    files = repository.behaviors()
    names = sorted(files) if behaviors is None and not suites else behaviors or []
    judge = Judge(repository.config().judge, repository.local / "verdicts")
    probes = []
    for name in names:
        if name not in files:
            raise NotFoundError(
                f"there is no behaviors/{name}.toml", f"write one with [[probes]], or leave `{name}` out"
            )
        place = _Place(repository.root / "behaviors", "behaviors", name)
        probes += [_read_probe(place, entry, judge) for entry in files[name].probes]
    for path in _suite_paths(repository, suites):
        place, file = _read_file(repository, path)
        probes += [_read_probe(place, entry, judge) for entry in file.probes]
    names_seen = [probe.name for probe in probes]
    twice = sorted({name for name in names_seen if names_seen.count(name) > 1})
    if twice:
        raise DataError(f"two probes bear the name `{twice[0]}`", "give each probe of a behavior its own name")
    found = [probe.first(rows) for probe in probes]
    if samples is not None:
        # No reply of these is written that could be sampled.
        found = [item if isinstance(item.scorer, LabelEntry) else replace(item, samples=samples) for item in found]
    return found


def suite_digest(probes: Sequence[Probe]) -> str:
    """Identity of a suite."""
    return digest([probe.as_json() for probe in probes])


def general_text(repository: Repository) -> list[Row]:
    """Held-out general text: the rows of the general suite's `text` file, and without one the rows of its probes that
    have a `chosen` reply.

    Returns:
        Rows with a prompt and `chosen`. Plain text has an empty prompt and one turn in `chosen`.

    Raises:
        NotFoundError, DataError: as `read_suite`.
    """
    path = repository.root / GENERAL
    if not path.is_file():
        return []
    place, file = _read_file(repository, path)
    if file.text:
        return [read_text(line, where) for line, where in _lines(place, file.text, "the general text")]
    rows = (row for entry in file.probes for row in _read_probe(place, entry, None).rows)
    return [Row(prompt=row.prompt, chosen=row.chosen) for row in rows if row.chosen]


@dataclass(frozen=True)
class _Place:
    """Where a suite's rows lie: a folder, its name in messages, and whose suite it is."""

    folder: Path
    shown: str
    owner: str

    @property
    def file(self) -> str:
        return f"{self.shown}/{self.owner}.toml"


def _suite_paths(repository: Repository, suites: Sequence[str]) -> list[Path]:
    general = repository.root / GENERAL
    if not suites:
        return [general] if general.is_file() else []
    paths = []
    for name in suites:
        path = Path(name) if name.endswith(".toml") else repository.root / "suites" / f"{name}.toml"
        if not path.is_file():
            known = sorted(item.stem for item in (repository.root / "suites").glob("*.toml"))
            raise NotFoundError(
                f"there is no suite at {path}",
                f"there are: {', '.join(known)}" if known else "write it: docs/evaluation.md",
            )
        paths.append(path)
    return paths


def _read_file(repository: Repository, path: Path) -> tuple[_Place, _SuiteFile]:
    own = path.resolve().is_relative_to(repository.root.resolve())
    shown = path.resolve().relative_to(repository.root.resolve()).as_posix() if own else str(path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} is not UTF-8 text: {error}", "save the file as UTF-8") from error
    place = _Place(path.parent, shown.rpartition("/")[0] or ".", path.stem)
    return place, validate(_SuiteFile, parse_toml(text, shown), shown)


def _lines(place: _Place, file: str, what: str) -> list[tuple[str, str]]:
    """The lines of a JSONL file that are not empty, each with its file and number.

    Raises:
        NotFoundError, DataError: when there is no such file, it is not text, or it is empty.
    """
    path = inside(place.folder, file)
    if not path.is_file():
        raise NotFoundError(f"{what} needs {path}, which is not there", f"restore the file, or edit {place.file}")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}", "save the file as UTF-8") from error
    # Not splitlines: a text in JSON may hold other line separators, such as U+2028, as they are.
    numbered = enumerate(text.split("\n"), start=1)
    found = [(line, f"{place.shown}/{file}:{number}") for number, line in numbered if line.strip()]
    if not found:
        raise DataError(f"{path} has no rows", "a probe needs at least one line of JSON")
    return found


def _read_probe(place: _Place, entry: ProbeEntry, judge: Judge | None) -> Probe:
    name = f"{place.owner}.{entry.name}"
    lines = _lines(place, entry.file, f"the probe `{name}`")
    rows = [read_row(line, where, entry.scorer) for line, where in lines]
    pairs = itertools.permutations((*entry.yes, *entry.no), 2)
    clash = [(a, b) for a, b in pairs if b.startswith(a)]
    wrong = ""
    if clash:
        wrong = f"the opening {clash[0][0]!r} begins {clash[0][1]!r}, so their probabilities cannot be compared"
    elif bool(entry.yes) != bool(entry.no):
        wrong = "it has only one of `yes` and `no`, so their probabilities cannot be compared"
    elif isinstance(entry.scorer, LabelEntry) and (entry.yes or entry.samples):
        wrong = "a scorer `label` writes no replies: it has no openings and nothing to sample"
    if wrong:
        raise DataError(f"the probe `{name}`: {wrong}", f"edit {place.file}")
    given = {key: value for key, value in entry if key not in ("name", "file")}
    return Probe(name=name, rows=tuple(rows), judge=judge, **given)
