"""`persona eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent

if TYPE_CHECKING:
    from personality.manifests.evaluation import Evaluation, Figure


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
    from personality.versions.history import History

    out = Output("eval", as_json=as_json)
    repository = open_repository(directory)
    history = History(repository)
    found = history.find(version)
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


def result_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Table rows, one a probe: counts and intervals; the margin in nats per token."""
    return [
        (
            item.probe,
            f"{sum(item.outcomes)}/{item.passed.n} = {percent(item.passed.value)}",
            str(item.passed.n),
            interval(item.passed),
            percent(item.probability.value) if item.probability else "",
            interval(item.probability) if item.probability else "",
            f"{item.margin.value:+.2f}" if item.margin else "",
        )
        for item in evaluation.results
    ]


def interval(figure: Figure) -> str:
    """A 95% interval of a share."""
    return f"{percent(figure.low)}–{percent(figure.high)}"
