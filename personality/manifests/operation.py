"""One entry of the operation log: which small files a command changed, and what they held before and after."""

from __future__ import annotations

from typing import ClassVar

from personality.manifests.record import Frozen, Record


class Change(Frozen):
    """One text file's content before and after; None where it did not exist."""

    path: str
    before: str | None
    after: str | None


class Operation(Record):
    """The record of one command; its file is `.persona/ops/<number>.json`.

    Attributes:
        number: counts up from 1.
        command: what the user ran, for `log` and for `undo`'s message.
        time: ISO 8601 in UTC.
        changes: in the order in which they were written.
        inverts: the number of the operation that this one undid or redid, if any.
        direction: `do`, `undo` or `redo`.
    """

    noun: ClassVar[str] = "operation"
    mend: ClassVar[str] = "remove it: `rm FILE`; it only serves `undo`"

    number: int
    command: str
    time: str
    changes: tuple[Change, ...]
    inverts: int | None = None
    direction: str = "do"
