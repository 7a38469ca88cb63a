"""`persona export`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output, megabytes_per_second, percent


@examples(
    "persona export v4 --to vllm out/",
    "persona export stable --to hf out/ --shard-gb 2",
    "persona export v5 --to vllm out/ --force",
)
def export(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    to: Annotated[Literal["hf", "vllm"], typer.Option(help="What will load it.")] = "hf",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in DIR.")] = False,
    shard_gb: Annotated[float, typer.Option(min=0.000001, help="Greatest size of a weights file, in GB.")] = 5.0,
    as_json: JsonOption = False,
    in_directory: DirectoryOption = None,
) -> None:
    """Write a version as a model folder, reload it, and compare it with the version composed in memory."""
    from personality.builds.export import as_json as export_json
    from personality.builds.export import export as export_version

    out = Output("export", as_json=as_json)
    repository = open_repository(in_directory)
    history, found = find_version(out, repository, version)
    started = time.monotonic()
    with out.progress("export") as advance:
        result = export_version(
            repository,
            found,
            to,
            directory,
            force=force,
            shard_bytes=int(shard_gb * 1e9),
            on_progress=lambda p: advance(p.done, p.total, megabytes_per_second(started, p.done)),
            on_stage=lambda stage: advance(0, 1, stage),
        )

    def human() -> None:
        same = result.agreement
        out.line(f"{history.label(found)} → {directory}", "bold")
        out.line(
            f"  reloaded with transformers, compared with the version composed in memory: greatest |Δ log-probability| "
            f"{same.greatest_difference:.2g} nats, greedy tokens agree at {percent(same.greedy)} of {same.positions} "
            "positions"
        )
        for note in result.notes:
            out.line(f"  {note}")
        if to == "vllm":
            out.note(f"next: vllm serve {directory}")

    out.result({"version": found.id, "target": to, **export_json(result)}, human)
