"""`persona gc`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, YesOption, examples, open_repository
from personality.cli.output import Output, size
from personality.manifests.errors import UsageError


@examples("persona gc --dry-run", "persona gc --yes", "persona gc --forget-undo --unfinished-runs --yes")
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    forget_undo: Annotated[
        bool, typer.Option("--forget-undo", help="Also what only `undo` and `redo` could bring back.")
    ] = False,
    unfinished_runs: Annotated[
        bool, typer.Option("--unfinished-runs", help="Also training runs that could still be gone on with.")
    ] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Remove leftovers of interrupted commands, old builds, and vectors that nothing refers to."""
    from personality.gc import collect, find_garbage

    out = Output("gc", as_json=as_json)
    repository = open_repository(directory)
    with repository.writing():
        garbage = find_garbage(repository, forget_undo=forget_undo, unfinished_runs=unfinished_runs)
        total = sum(item.bytes for item in garbage)
        if garbage and not dry_run and not yes:
            if as_json or not sys.stdin.isatty():
                raise UsageError(
                    f"{len(garbage)} things ({size(total)}) would be removed and nobody is there to ask",
                    "look with `--dry-run`, then say `--yes`",
                )
            for item in garbage:
                out.note(f"{item.path.relative_to(repository.root)}: {item.why}")
            typer.confirm(
                f"Remove {len(garbage)} things ({size(total)})? (`--yes` skips this question)", abort=True, err=True
            )
        freed = 0 if dry_run else collect(garbage)

    def human() -> None:
        rows = [(str(item.path.relative_to(repository.root)), item.why, size(item.bytes)) for item in garbage]
        if rows:
            out.table(["what", "why", ">size"], rows)
        word = f"would free {size(total)}" if dry_run else f"freed {size(freed)}"
        out.line(word if garbage else "nothing to remove")

    out.result(
        {
            "dry_run": dry_run,
            "freed": freed,
            "garbage": [
                {"path": str(item.path.relative_to(repository.root)), "why": item.why, "bytes": item.bytes}
                for item in garbage
            ],
        },
        human,
    )
