"""`undo` and `redo`: walking the operation log back and forth, without losing what was made since."""

from __future__ import annotations

from pathlib import Path

from personality.manifests.errors import PersonaError
from personality.manifests.operation import Operation
from personality.manifests.repository import Repository
from personality.manifests.transaction import inverse, replay, settle, stacks
from personality.versions.history import History
from personality.versions.recipe import working_personality


def undo(repository: Repository) -> Operation:
    """Take the last operation back; again and again walks further back.

    Raises:
        PersonaError: when there is nothing to undo, or it would lose something made since.
    """
    with repository.writing():
        settle(repository)
        done, _ = stacks(repository.operations())
        # The first operation made the repository itself.
        if not done or done[-1].command == "init":
            raise PersonaError("there is nothing to undo", "`persona log` shows the versions")
        _check_unused(repository, done[-1])
        return replay(repository, done[-1], "undo")


def redo(repository: Repository) -> Operation:
    """Do again what `undo` took back.

    Raises:
        PersonaError: when nothing was undone since the last change.
    """
    with repository.writing():
        settle(repository)
        _, undone = stacks(repository.operations())
        if not undone:
            raise PersonaError(
                "there is nothing to redo: no `undo` since the last change", "`persona log` shows the versions"
            )
        return replay(repository, undone[-1], "redo")


def _check_unused(repository: Repository, operation: Operation) -> None:
    """Refuse to take away a version or vector that something outside the operation refers to."""
    removed = {Path(change.path) for change in inverse(operation) if change.after is None}
    history = History(repository)
    for path in removed:
        if path.parent.name == "versions":
            keepers = [history.label(child) for child in history.children(path.stem)]
            keepers += [f"tag {name}" for name, target in history.tags.items() if target == path.stem]
        elif path.parent.name == "manifests":
            keepers = [
                history.label(version)
                for version in history.versions.values()
                if any(use.vector == path.stem for use in version.personality.uses)
            ]
            working = working_personality(repository)
            keepers += [f"behaviors/{use.behavior}.toml" for use in working.uses if use.vector == path.stem]
        else:
            continue
        if keepers:
            raise PersonaError(
                f"`{operation.command}` cannot be undone: {', '.join(keepers[:3])} was made from it",
                "go back without losing that: `persona restore VERSION`",
            )
