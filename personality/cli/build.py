"""`persona build`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output, megabytes_per_second


@examples("persona build v4", "persona build head --again", "persona build stable --json")
def build(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")] = "head",
    again: Annotated[bool, typer.Option("--again", help="Build even when it is there already.")] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Compose a version's checkpoint into the repository's cache, always from the base."""
    from personality.builds.build import BuildRecord
    from personality.builds.build import build as build_version

    out = Output("build", as_json=as_json)
    repository = open_repository(directory)
    history, found = find_version(out, repository, version)
    started = time.monotonic()
    with out.progress("compose") as advance:
        path, built = build_version(
            repository,
            found,
            again=again,
            on_progress=lambda p: advance(p.done, p.total, megabytes_per_second(started, p.done)),
        )
    seconds = time.monotonic() - started
    steering = BuildRecord.read(path / BuildRecord.file_name).steering

    def human() -> None:
        out.line(str(path))
        out.note(f"{history.label(found)} {f'composed in {seconds:.1f} s' if built else 'was built already'}")

    data = {"version": found.id, "path": str(path), "built": built, "seconds": seconds}
    out.result({**data, "steering": steering.as_json() if steering is not None else None}, human)
    if steering is not None:
        out.warn(f"{steering}; `persona export` bakes steering in where that is exact, `persona ask` runs both")
