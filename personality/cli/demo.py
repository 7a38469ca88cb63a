"""`persona demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, enter, examples
from personality.cli.output import Output
from personality.manifests.errors import PersonaError


@examples("persona demo", "persona demo my-demo", "persona demo --json")
def demo(
    directory: Annotated[
        Path | None, typer.Argument(help="Folder to make.", show_default="persona-demo, or the next free name")
    ] = None,
    as_json: JsonOption = False,
    in_directory: DirectoryOption = None,
) -> None:
    """Show the whole job on the bundled playground model in under two minutes.

    Trains three behaviors separately, adds them at scales, compares versions, takes one out again, and exports.
    Every figure is measured while you watch; the demo fails when a promised effect does not occur.
    """
    from personality.cli.story import Story

    enter(in_directory)
    out = Output("demo", as_json=as_json)
    started = time.monotonic()
    story = Story(out, _folder(directory).resolve())
    promises = story.tell()
    seconds = time.monotonic() - started

    def human() -> None:
        out.line()
        out.line(f"All {len(promises)} promised effects occurred, in {seconds:.0f} s. Go on:", "bold green")
        for command in story.next_commands():
            out.line(f"  {command}")

    out.result({"seconds": seconds, "root": str(story.root), "promises": promises}, human)


def _folder(directory: Path | None) -> Path:
    if directory is not None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise PersonaError(f"{directory} is not empty", "give a new folder: `persona demo DIR`")
        return directory
    for number in range(1, 1000):
        folder = Path("persona-demo" if number == 1 else f"persona-demo-{number}")
        if not folder.exists():
            return folder
    raise PersonaError("there are a thousand demos here already", "remove some, or give a folder: `persona demo DIR`")
