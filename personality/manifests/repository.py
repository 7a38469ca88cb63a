"""A user's repository on disk: where things lie, and reading what lies there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from personality.manifests.atomic import TEMPORARY_PREFIX, abandoned, write_bytes
from personality.manifests.behavior_file import BehaviorFile
from personality.manifests.config import FILE_NAME, Config
from personality.manifests.errors import CorruptError, NotFoundError, PersonaError
from personality.manifests.evaluation import Evaluation
from personality.manifests.lock import locked
from personality.manifests.manifest import Manifest
from personality.manifests.names import check_behavior_name
from personality.manifests.operation import Operation
from personality.manifests.version import Version

_GITIGNORE = """# caches, lock and undo log of this working copy
.persona/
# large; use git LFS instead if you want them in git
vectors/
"""

Identified = TypeVar("Identified", Manifest, Version)


_OWN = ("behaviors", "evals", "manifests", "studies", "tags", "vectors", "versions", ".persona")


class Repository:
    """One repository; holds no state of its own, every read goes to disk.

    Args:
        root: the folder with `persona.toml`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.local = root / ".persona"
        self.cache = self.local / "cache.json"

    @classmethod
    def discover(cls, start: Path) -> Repository:
        """The repository that a folder lies in.

        Raises:
            NotFoundError: when neither the folder nor one above it has a `persona.toml`.
        """
        for folder in [start.resolve(), *start.resolve().parents]:
            if (folder / FILE_NAME).is_file():
                return cls(folder)
        raise NotFoundError(
            f"{start.resolve()} is not inside a persona repository (no {FILE_NAME} here or above)",
            "make one: `persona init --base MODEL`, or `persona playground DIR` to try things out",
        )

    @staticmethod
    def check_new(root: Path) -> None:
        """Make sure that a folder is no repository yet.

        Raises:
            PersonaError: when it is.
        """
        if (root / FILE_NAME).exists():
            raise PersonaError(f"{root} is a persona repository already", "see what is in it: `persona status`")

    @classmethod
    def prepare(cls, root: Path) -> Repository:
        """Make the folders of a new repository. It becomes one when `persona.toml` is written, after its first version.

        Raises:
            PersonaError: when there is one already.
        """
        cls.check_new(root)
        for name in ("behaviors", "manifests", "vectors", "versions", "evals", ".persona/ops"):
            (root / name).mkdir(parents=True, exist_ok=True)
        if not (root / ".gitignore").exists():
            write_bytes(root / ".gitignore", _GITIGNORE.encode())
        return cls(root)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the repository's lock: one command writes at a time."""
        with locked(self.local / "lock"):
            yield

    def text(self, relative: str) -> str | None:
        """A small file's text; None when it does not exist."""
        path = self.root / relative
        try:
            return path.read_bytes().decode()  # not read_text, which would turn the line ends of Windows into others
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise CorruptError(f"{path} is not UTF-8 text", f"restore it: `git checkout -- {relative}`") from error

    def config(self) -> Config:
        """What `persona.toml` says."""
        return Config.from_text(self.text(FILE_NAME) or "")

    def behavior_names(self) -> list[str]:
        """Behaviors that have a file, readable or not, sorted."""
        return [_behavior_of(path) for path in _records(self.root / "behaviors", "*.toml")]

    def behaviors(self) -> dict[str, BehaviorFile]:
        """Every behavior's file, by name, sorted."""
        found = {}
        for name in self.behavior_names():
            relative = f"behaviors/{name}.toml"
            found[name] = BehaviorFile.from_text(self.text(relative) or "", relative)
        return found

    def manifests(self) -> list[Manifest]:
        """Every vector's manifest, sorted by behavior and number."""
        found = _named_after_id(Manifest, self.root / "manifests")
        return sorted(found, key=lambda manifest: (manifest.behavior, manifest.number, manifest.id))

    def versions(self) -> dict[str, Version]:
        """Every version by id, lowest number first."""
        found = _named_after_id(Version, self.root / "versions")
        return {version.id: version for version in sorted(found, key=lambda item: (item.number, item.id))}

    def tags(self) -> dict[str, str]:
        """Version ids by tag, sorted."""
        found = {}
        for path in _records(self.root / "tags", "*.json"):
            try:
                found[path.stem] = str(json.loads(path.read_bytes())["version"])
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptError(f"{path} is not a tag", f"restore it: `git checkout -- tags/{path.name}`") from error
        return found

    def evaluations(self, version_id: str) -> list[Evaluation]:
        """The evaluations of a version, oldest first."""
        return _by_time(_records(self.root / "evals" / version_id, "*.json"))

    def evaluations_of_run(self, key: str) -> list[Evaluation]:
        """Every evaluation of one run (`Evaluation.key`), oldest first, whichever version it was made for.

        A restored version has another id and the same personality: what was measured on the one holds for the other.
        """
        return _by_time(_records(self.root / "evals", f"*/{key}*.json"))

    def new_evaluation_path(self, version_id: str, key: str) -> Path:
        """Where to write an evaluation: evaluations are append-only, so a repeated run has a number of its own."""
        folder = self.root / "evals" / version_id
        runs = len(_records(folder, f"{key}*.json"))
        return folder / (f"{key}.json" if runs == 0 else f"{key}-{runs + 1}.json")

    def operations(self) -> list[Operation]:
        """The operation log, oldest first."""
        return [Operation.read(path) for path in _records(self.local / "ops", "*.json")]

    def interrupted(self) -> list[Path]:
        """What killed commands left behind, in the repository's own folders and, by exports, beside them."""
        found = [path for name in _OWN for path in abandoned(self.root / name)]
        return sorted(found + abandoned(self.root, deep=False))

    def manifest_path(self, vector_id: str) -> Path:
        """Where a vector's manifest lies."""
        return self.root / "manifests" / f"{vector_id}.json"

    def vector_path(self, vector_id: str) -> Path:
        """Where a vector's tensors lie."""
        return self.root / "vectors" / vector_id[:2] / f"{vector_id}.safetensors"


def _named_after_id(kind: type[Identified], folder: Path) -> list[Identified]:
    """Every record of a folder, each in a file that its id names."""
    found = []
    for path in _records(folder, "*.json"):
        record = kind.read(path)
        if record.id != path.stem:
            raise CorruptError(
                f"{path} holds the {kind.noun} of {record.label}, {record.id}",
                f"restore it: `git checkout -- {folder.name}/{path.name}`",
            )
        found.append(record)
    return found


def _by_time(paths: list[Path]) -> list[Evaluation]:
    return sorted((Evaluation.read(path) for path in paths), key=lambda item: (item.time, item.id))


def _records(folder: Path, pattern: str) -> list[Path]:
    """Finished files, sorted by name; what an interrupted write left is passed over."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(TEMPORARY_PREFIX))


def _behavior_of(path: Path) -> str:
    """The behavior that a file is named after."""
    try:
        return check_behavior_name(path.stem)
    except PersonaError as error:
        raise CorruptError(f"behaviors/{path.name} is not named after a behavior", f"rename it: {error.hint}") from None
