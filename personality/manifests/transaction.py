"""Changing a repository's small files: in crash order, logged, and invertible."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from personality.manifests.atomic import remove, sync, write_bytes
from personality.manifests.errors import PersonaError
from personality.manifests.names import inside
from personality.manifests.operation import Change, Operation
from personality.manifests.repository import Repository

PENDING = ".pending"
"""Ending of an operation's record until its changes are made."""

# A record is written before what refers to it, so that an interruption leaves at worst an unreferenced
# object or a difference that looks like a hand edit.
_ORDER = ("manifests/", "versions/", "tags/", "behaviors/", "persona.toml")


def now() -> str:
    """The present moment, ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _rank(change: Change) -> tuple[int, str]:
    rank = next((i for i, prefix in enumerate(_ORDER) if change.path.startswith(prefix)), len(_ORDER))
    return rank, change.path


def _apply(repository: Repository, changes: Sequence[Change]) -> None:
    for change in changes:
        path = inside(repository.root, change.path)
        if change.after is None:
            remove(path)
        else:
            write_bytes(path, change.after.encode())


def _carry_out(repository: Repository, operation: Operation) -> None:
    """Apply an operation's changes and log it.

    The record is written under another name first: if the changes are interrupted, what they overwrote (an unsaved
    edit that `restore` drops, say) is still known, and `settle` makes the operation one that `undo` takes back.
    """
    path = repository.local / "ops" / f"{operation.number:08d}.json"
    pending = path.with_suffix(PENDING)
    write_bytes(pending, operation.to_bytes())
    _apply(repository, operation.changes)
    pending.replace(path)
    sync(path.parent)


def settle(repository: Repository) -> None:
    """Log operations that were interrupted; the caller holds the lock, so none of them is still running.

    A change that was half made is logged, so that `undo` takes it back whole. An `undo` or `redo` that was half made
    is forgotten, since the next one finishes it.
    """
    for pending in sorted((repository.local / "ops").glob(f"*{PENDING}")):
        operation = Operation.read(pending)
        made = [
            bool(inside(repository.root, change.path)) and repository.text(change.path) == change.after
            for change in operation.changes
        ]
        if any(made) if operation.direction == "do" else all(made):
            pending.replace(pending.with_suffix(".json"))
        else:
            remove(pending)


def commit(repository: Repository, command: str, texts: dict[str, str | None]) -> Operation | None:
    """Write files and log the operation; the caller holds the repository's lock.

    Args:
        repository: where.
        command: what the user ran.
        texts: new content by path relative to the root; None removes the file.

    Returns:
        The logged operation, or None when nothing would change.
    """
    changes = []
    for path, after in texts.items():
        before = repository.text(path)
        if before != after:
            changes.append(Change(path=path, before=before, after=after))
    if not changes:
        return None
    changes.sort(key=_rank)
    settle(repository)
    number = 1 + max((operation.number for operation in repository.operations()), default=0)
    operation = Operation(number=number, command=command, time=now(), changes=tuple(changes))
    _carry_out(repository, operation)
    return operation


def stacks(operations: Sequence[Operation]) -> tuple[list[Operation], list[Operation]]:
    """What `undo` and `redo` would take next, last first: replays the log as two stacks."""
    done: list[Operation] = []
    undone: list[Operation] = []
    for operation in operations:
        if operation.direction == "do":
            done.append(operation)
            undone.clear()
        elif operation.direction == "undo" and done:
            undone.append(done.pop())
        elif operation.direction == "redo" and undone:
            done.append(undone.pop())
    return done, undone


def inverse(operation: Operation) -> tuple[Change, ...]:
    """The changes that take an operation back, in the order in which they are safe."""
    return tuple(
        Change(path=change.path, before=change.after, after=change.before) for change in reversed(operation.changes)
    )


def replay(repository: Repository, operation: Operation, direction: str) -> Operation:
    """Undo or redo one operation and log that; the caller holds the lock and has checked that it is allowed.

    Args:
        repository: where.
        operation: one that `stacks` offers.
        direction: `undo` or `redo`.

    Raises:
        PersonaError: when a file no longer holds what the operation left, so that going on would lose an edit.
    """
    changes = inverse(operation) if direction == "undo" else operation.changes
    for change in changes:
        inside(repository.root, change.path)
        if repository.text(change.path) not in (change.before, change.after):
            raise PersonaError(
                f"{change.path} was changed since `{operation.command}`; to {direction} that would lose the edit",
                f"take the edit out of {change.path} first, or go back with `persona restore VERSION`",
            )
    last = max(item.number for item in repository.operations())
    entry = Operation(
        number=last + 1,
        command=f"{direction} {operation.command}",
        time=now(),
        changes=changes,
        inverts=operation.number,
        direction=direction,
    )
    _carry_out(repository, entry)
    return entry
