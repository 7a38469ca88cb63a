"""`persona eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output
from personality.cli.tables import result_rows

if TYPE_CHECKING:
    pass


@examples("persona eval v4", "persona eval head --behavior listening --rows 30", "persona eval v4 --again --json")
def eval_(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")] = "head",
    behavior: Annotated[
        list[str] | None, typer.Option(help="Whose probes; general ability always.", show_default="all")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of each probe.", show_default="all")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure even what was measured before.")] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Measure a version with the repository's probes; the result is kept with the version."""
    from personality.evaluation.evaluate import evaluate

    out = Output("eval", as_json=as_json)
    repository = open_repository(directory)
    history, found = find_version(out, repository, version)
    with out.progress("measure") as advance:
        evaluation = evaluate(
            repository,
            found,
            behaviors=behavior,
            rows=rows,
            again=again,
            on_probe=advance,
        )

    def human() -> None:
        out.line(f"{history.label(found)}  {found.personality}", "bold")
        out.table(
            ["probe", ">passed", ">n", ">95% interval", ">P(opening)", ">95% interval", ">margin"],
            result_rows(evaluation),
        )

    out.result({"label": history.label(found), "evaluation": evaluation.as_json()}, human)
