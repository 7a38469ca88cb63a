"""`persona playground`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, enter, examples
from personality.cli.output import Output


@examples(
    "persona playground play",
    "persona playground play && cd play && persona status",
    "persona playground play --seed 7",
)
def playground(
    directory: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(help="Which examples are drawn.")] = 0,
    as_json: JsonOption = False,
    in_directory: DirectoryOption = None,
) -> None:
    """Make a repository to play with: a 1 MB chat model, data for five behaviors, and probes."""
    from personality.playground.repository import make_playground

    enter(in_directory)
    out = Output("playground", as_json=as_json)
    made = make_playground(directory.resolve(), seed=seed)

    def human() -> None:
        out.line(f"playground {directory}", "bold")
        out.line(f"  behaviors with data and probes: {', '.join(made.behaviors)}")
        out.note(f"next: cd {directory}")
        out.note("      persona train listening --data data/listening.jsonl --general data/general.jsonl")
        out.note("      persona add listening --scale 0.8")

    out.result({"root": str(made.repository.root), "behaviors": list(made.behaviors)}, human)
