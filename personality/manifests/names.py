"""What things may be called, how a label is read, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from personality.manifests.errors import CorruptError, UsageError

BEHAVIOR_PATTERN = r"^[a-z][a-z0-9_-]{0,62}$"
"""Names become file names, so the alphabet is small."""
_BEHAVIOR = re.compile(BEHAVIOR_PATTERN)
_RESERVED = ("base", "composition", "general", "head")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
_VERSION_LABEL = re.compile(r"v[0-9]+")
_HEX = re.compile(r"[0-9a-f]+")
MIN_ID_PREFIX = 4
_TAKEN = ("base", "head")  # these always mean a version


@dataclass(frozen=True, order=True)
class VectorLabel:
    """`listening@3`, `listening` (the newest) or `listening@3:ab12` (when two branches both made number 3)."""

    behavior: str
    number: int | None = None
    id_prefix: str = ""

    def __str__(self) -> str:
        number = "" if self.number is None else f"@{self.number}"
        return f"{self.behavior}{number}{':' + self.id_prefix if self.id_prefix else ''}"

    @classmethod
    def parse(cls, text: str) -> VectorLabel:
        """Read a label.

        Raises:
            UsageError: when it is not of the form NAME, NAME@N or NAME@N:IDPREFIX.
        """
        name, at, rest = text.partition("@")
        number, colon, prefix = rest.partition(":")
        well_formed = (not at or (number.isdecimal() and int(number) > 0)) and (
            not colon or (len(prefix) >= MIN_ID_PREFIX and _HEX.fullmatch(prefix))
        )
        if not well_formed:
            raise UsageError(f"`{text}` is not a vector's label", "write NAME or NAME@NUMBER, such as `listening@3`")
        return cls(check_behavior_name(name), int(number) if at else None, prefix)


def check_behavior_name(name: str) -> str:
    """Return the name when a behavior may bear it.

    Raises:
        UsageError: otherwise.
    """
    if name in _RESERVED or _VERSION_LABEL.fullmatch(name):
        raise UsageError(f"`{name}` means something else here and cannot be a behavior's name", "choose another name")
    if not _BEHAVIOR.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot be a behavior's name",
            "use lower-case letters, digits, `-` and `_`, starting with a letter, such as `listening`",
        )
    return name


def check_tag_name(name: str) -> str:
    """Return the name when a tag may bear it.

    Raises:
        UsageError: when it has other characters, or could be taken for a version's label or id.
    """
    looks_like_id = len(name) >= MIN_ID_PREFIX and _HEX.fullmatch(name)
    if not _TAG.fullmatch(name) or _VERSION_LABEL.fullmatch(name) or looks_like_id or name in _TAKEN:
        raise UsageError(
            f"`{name}` cannot be a tag",
            "use letters, digits, `.`, `-` and `_`; not `v7`, `base`, `head` or a bare hex number",
        )
    return name


def version_number(label: str) -> int | None:
    """7 for `v7`; None when the text is no version label."""
    return int(label[1:]) if _VERSION_LABEL.fullmatch(label) else None


def is_id_prefix(text: str) -> bool:
    """Whether the text can be the beginning of an id."""
    return len(text) >= MIN_ID_PREFIX and bool(_HEX.fullmatch(text))


def near(wrong: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name; empty when none is near."""
    found = difflib.get_close_matches(wrong, sorted(set(known)), n=1, cutoff=0.5)
    return f"did you mean `{found[0]}`?" if found else ""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name, or lists what there is."""
    choices = sorted(set(known))
    return near(wrong, choices) or (
        f"there is: {', '.join(f'`{choice}`' for choice in choices[:12])}" if choices else ""
    )


def inside(root: Path, relative: str) -> Path:
    """Join a path that came out of a file to the folder that it must stay in.

    Raises:
        CorruptError: when it is absolute or climbs out (`..`, also through a link).
    """
    pure = PurePosixPath(relative)
    joined = root / pure
    if pure.is_absolute() or ".." in pure.parts or not joined.resolve().is_relative_to(root.resolve()):
        raise CorruptError(f"the path `{relative}` leads out of {root}", "only files inside the folder may be named")
    return joined
