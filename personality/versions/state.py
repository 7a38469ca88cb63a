"""The state of a repository: what is in use, what is not saved, what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from personality.making.run_folder import unfinished_runs
from personality.manifests.errors import PersonaError
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.versions.history import History
from personality.versions.recipe import RecipeChange, compare_recipes, working_personality


@dataclass(frozen=True)
class State:
    """What `status` shows.

    Attributes:
        tips: labels of the newest versions; more than one after a git merge.
        working: what the files describe.
        unsaved: how that differs from the newest version.
        problems: vectors in use whose tensors are not here.
        interrupted: how many leftovers of interrupted commands there are.
        unfinished: behaviors of training runs that can be gone on with, the oldest first.
    """

    tips: list[str]
    working: Personality
    unsaved: list[RecipeChange]
    problems: list[str]
    interrupted: int
    unfinished: list[str]


def repository_state(repository: Repository) -> State:
    """Read the state; cheap, nothing large is opened."""
    history = History(repository)
    try:
        working = working_personality(repository)
    except PersonaError as error:
        # What the files mean cannot be told; what the newest version says still can.
        problem = f"{error.message} ({error.hint})" if error.hint else error.message
        tips = [history.label(tip) for tip in history.tips]
        interrupted = len(repository.interrupted())
        return State(tips, history.tips[-1].personality, [], [problem], interrupted, _unfinished(repository))
    matching = [tip for tip in history.tips if tip.personality.id == working.id]
    head = (matching or history.tips or [history.head()])[0]
    problems = [
        f"the tensors of {use.label} are missing ({repository.vector_path(use.vector)}): copy or remake them"
        for use in working.uses
        if not repository.vector_path(use.vector).is_file()
    ]
    return State(
        tips=[history.label(tip) for tip in history.tips],
        working=working,
        unsaved=compare_recipes(head.personality, working),
        problems=problems,
        interrupted=len(repository.interrupted()),
        unfinished=_unfinished(repository),
    )


def _unfinished(repository: Repository) -> list[str]:
    return [run.behavior for run in unfinished_runs(repository) if run.behavior is not None]
