"""`persona build`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from personality.cli.options import (
    DeviceOption,
    DirectoryOption,
    JsonOption,
    ThreadsOption,
    examples,
    find_version,
    open_repository,
)
from personality.cli.output import Output, megabytes_per_second


@examples("persona build v4", "persona build head --again", "persona build v7 --shard-gb 1 --threads 8")
def build(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")] = "head",
    again: Annotated[bool, typer.Option("--again", help="Build even when it is there already.")] = False,
    shard_gb: Annotated[float, typer.Option(min=0.000001, help="Greatest size of a weights file, GB.")] = 5.0,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Compose a version's checkpoint into the repository's cache, always from the base.

    What has the same recipe in a version that is built already is taken over from there; --again makes everything anew.
    """
    from personality.builds.build import BuildRecord
    from personality.builds.build import build as build_version
    from personality.composition.engine import Engine

    out = Output("build", as_json=as_json)
    repository = open_repository(directory)
    history, found = find_version(out, repository, version)
    started = time.monotonic()
    with out.progress("compose") as advance:
        built = build_version(
            repository,
            found,
            again=again,
            shard_bytes=int(shard_gb * 1e9),
            engine=Engine(device, threads),
            on_progress=lambda p: advance(p.done, p.total, megabytes_per_second(started, p.done)),
        )
    seconds = time.monotonic() - started
    steering = BuildRecord.read(built.path / BuildRecord.file_name).steering
    taken = f", {built.taken_bytes / 1e6:.0f} MB of it taken over from another build" if built.taken_bytes else ""

    def human() -> None:
        out.line(str(built.path))
        out.note(
            f"{history.label(found)} {f'composed in {seconds:.1f} s{taken}' if built.new else 'was built already'}"
        )

    data = {"version": found.id, "path": str(built.path), "built": built.new, "seconds": seconds}
    data["taken_bytes"] = built.taken_bytes
    out.result({**data, "steering": steering.as_json() if steering is not None else None}, human)
    if steering is not None:
        out.warn(f"{steering}; `persona export` bakes steering in where that is exact, `persona ask` runs both")
