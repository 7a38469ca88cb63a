"""`playground`: a user's repository with the small model as its base, data for every behavior, and probes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from personality.evaluation.suite import GENERAL
from personality.manifests.atomic import write_bytes
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.errors import PersonaError
from personality.manifests.personality_record import Composition
from personality.manifests.repository import Repository
from personality.playground import base as package
from personality.playground.behaviors import BEHAVIORS, contrasting_prompts, examples, general
from personality.playground.probes import Probe, probes
from personality.vectors.base import fingerprint
from personality.vectors.checkpoint import Checkpoint
from personality.versions.changes import initialize

EXAMPLES = 200
GENERAL_EXAMPLES = 80
QUESTIONS = 60
OWN_GENERAL = ("concise", "warm", "candid")
"""Behaviors with general data of their own: general answers must show a manner too, and must not repeat the facts that
are the contrasts of `candid`."""
ONE_SIDED = ("listening", "candid")
"""Behaviors that also have data without their other side, to see what that does: a sycophant, forgotten facts."""

# A model of half a million parameters takes far larger steps than one of a billion; see docs/playground.md.
TRAINING: dict[str, Any] = {"lr": 0.001, "rank": 8, "batch_size": 6, "max_length": 256}


@dataclass(frozen=True)
class Playground:
    """What was made: the repository and the behaviors that it has data for."""

    repository: Repository
    behaviors: tuple[str, ...]


def base_folder() -> Path:
    """The folder of the model that ships with the package."""
    return Path(package.__file__).parent


def general_file(behavior: str) -> str:
    """The general data to train a behavior with, relative to the repository."""
    return f"data/general-{behavior}.jsonl" if behavior in OWN_GENERAL else "data/general.jsonl"


def make_playground(root: Path, *, seed: int = 0, probe_rows: int = 100) -> Playground:
    """Make a playground repository.

    Args:
        root: folder to make; it must be empty or absent.
        seed: which examples are drawn; probes are always the same.
        probe_rows: rows of each probe.

    Raises:
        PersonaError: when the folder is not empty.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise PersonaError(f"{root} is not empty", "give a new folder: `persona playground DIR`")
    target = root / "base"
    target.mkdir(parents=True)
    for path in sorted(base_folder().iterdir()):
        if path.is_file() and path.suffix != ".py":
            shutil.copyfile(path, target / path.name)
    _write_data(root, seed)
    _write_probes(root, probes(probe_rows))
    found = fingerprint(Checkpoint(target))
    identity = BaseIdentity(source="base", fingerprint=found.id)
    repository = initialize(root, identity, Composition(), TRAINING)
    return Playground(repository, tuple(BEHAVIORS))


def _write_data(root: Path, seed: int) -> None:
    for name in BEHAVIORS:
        _write_lines(root / f"data/{name}.jsonl", examples(name, EXAMPLES, seed))
        prompts = json.dumps(contrasting_prompts(name, QUESTIONS, seed), ensure_ascii=False, indent=1)
        write_bytes(root / f"data/{name}.prompts.json", f"{prompts}\n".encode())
    for name in ONE_SIDED:
        rows = examples(name, EXAMPLES, seed, sides="accept-only")
        _write_lines(root / f"data/{name}-one-sided.jsonl", rows)
    _write_lines(root / "data/general.jsonl", general(GENERAL_EXAMPLES, seed))
    for name in OWN_GENERAL:
        _write_lines(root / general_file(name), general(GENERAL_EXAMPLES, seed, name))


def _write_probes(root: Path, all_probes: Sequence[Probe]) -> None:
    for name, behavior in BEHAVIORS.items():
        own = [probe for probe in all_probes if probe.behavior == name]
        _write_suite(root / f"behaviors/{name}.toml", name, behavior.description, own)
    own = [probe for probe in all_probes if not probe.behavior]
    _write_suite(root / GENERAL, "general", "Abilities that every behavior must leave alone.", own)


def _write_suite(path: Path, owner: str, description: str, own: Sequence[Probe]) -> None:
    document = tomlkit.document()
    document["description"] = description
    tables = tomlkit.aot()
    for probe in own:
        short_name = probe.name.removeprefix(owner).lstrip(".") or owner
        entry = tomlkit.table()
        entry.add(tomlkit.comment(probe.description))
        entry["name"] = short_name
        entry["file"] = f"{owner}.{short_name}.jsonl"
        if probe.side:
            entry["side"] = probe.side
        if probe.yes:
            entry["yes"] = _lines(probe.yes)
            entry["no"] = _lines(probe.no)
        tables.append(entry)
        _write_lines(path.parent / f"{owner}.{short_name}.jsonl", probe.rows)
    if own:
        document["probes"] = tables
    write_bytes(path, tomlkit.dumps(document).encode())


def _lines(openings: Iterable[str]) -> tomlkit.items.Array:
    array = tomlkit.array()
    array.extend(openings)
    return array.multiline(multiline=True)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(path, text.encode())
