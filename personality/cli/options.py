"""Options that many verbs share, and how a verb declares its examples."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from personality.cli.output import Output
from personality.manifests.errors import NotFoundError
from personality.manifests.operation import Operation
from personality.manifests.repository import Repository

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object (schema persona/1), errors included.")]
DirectoryOption = Annotated[
    Path | None, typer.Option("-C", metavar="DIR", help="Run as if started in DIR.", show_default=False)
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Processor threads to compose with.", show_default="half of the cores")
]
DeviceOption = Annotated[str, typer.Option(help="Where to compose: cpu, or a GPU such as cuda.")]
MessageOption = Annotated[str, typer.Option("-m", "--message", help="Why, for the log.", show_default=False)]
SystemOption = Annotated[str, typer.Option(help="A system turn before it.", show_default=False)]
TemperatureOption = Annotated[float, typer.Option(min=0, help="0 for the most likely answer.")]
SamplingSeedOption = Annotated[int, typer.Option(help="Of sampling.")]
LongestAnswerOption = Annotated[int, typer.Option(min=1, help="Longest answer.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

Function = TypeVar("Function", bound=Callable[..., Any])


def examples(*lines: str) -> Callable[[Function], Function]:
    """Add examples to a verb's help; each becomes a paragraph of its own."""

    def add(function: Function) -> Function:
        paragraphs = "\n\n    ".join(line.replace("[", r"\[") for line in lines)
        function.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n    Examples:\n\n    {paragraphs}\n"
        return function

    return add


def enter(directory: Path | None) -> None:
    """Make `-C DIR` the working folder, so that every relative path starts there, as with git.

    Raises:
        NotFoundError: when there is no such folder.
    """
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as error:
            raise NotFoundError(
                f"cannot enter {directory}: {error.strerror}", "give an existing folder to -C"
            ) from None


def open_repository(directory: Path | None) -> Repository:
    """The repository of the working folder, or of `-C DIR`."""
    enter(directory)
    return Repository.discover(Path.cwd())


def find_version(out: Output, repository: Repository, name: str) -> tuple[Any, Any]:
    """The history and the version that a name means; says so when `head` is meant and the files differ from it.

    Returns:
        A `personality.versions.history.History` and a `personality.manifests.version.Version`.
    """
    from personality.versions.history import History
    from personality.versions.recipe import compare_recipes, working_personality

    history = History(repository)
    version = history.find(name)
    if name == "head" and compare_recipes(version.personality, working_personality(repository)):
        out.warn(
            f"the files have unsaved edits; this is {history.label(version)} without them (`persona save` records them)"
        )
    return history, version


def find_versions(out: Output, repository: Repository, names: Sequence[str]) -> list[tuple[Any, str]]:
    """Each version that is named, as `find_version` finds it, with its label."""
    found = [find_version(out, repository, name) for name in names]
    return [(version, history.label(version)) for history, version in found]


def show_recorded(out: Output, recorded: Any, interference: Sequence[Any] = ()) -> None:
    """Print what a change recorded.

    Args:
        out: where.
        recorded: a `personality.versions.changes.Recorded`.
        interference: how steering vectors in use relate (`personality.composition.steering_diff.Interference`).
    """
    version = recorded.version

    def human() -> None:
        if recorded.new and recorded.changes:
            out.line(f"{recorded.label}  {version.message}", "bold")
            for change in recorded.changes:
                out.line(f"  {change}")
        elif recorded.new:
            out.line(f"files set to {recorded.label}")
        else:
            out.line(f"nothing to change: the repository is at {recorded.label}")
        for item in interference:
            out.line(f"  {item.first} and {item.second} in layer {item.layer}: cosine {item.cosine:+.2f}")

    out.result(
        {
            "version": version.id,
            "label": recorded.label,
            "recorded": bool(recorded.new and recorded.changes),
            "changes": [change.as_json() for change in recorded.changes],
            "interference": [asdict(item) for item in interference],
        },
        human,
    )


def show_operation(out: Output, operation: Operation) -> None:
    """Print what `undo` or `redo` did."""
    files = [change.path for change in operation.changes]
    out.result(
        {"operation": operation.command, "files": files},
        lambda: out.line(f"{operation.command} ({len(files)} file{'' if len(files) == 1 else 's'})"),
    )
