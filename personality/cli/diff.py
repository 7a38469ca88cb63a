"""`persona diff`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personality.cli.difference_lines import further_rows, module_rows, owner_lines, show_transcript
from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output
from personality.cli.tables import LEGEND, effect_rows, layer_rows, steering_rows

if TYPE_CHECKING:
    from personality.difference.difference import Difference

_DIFFERENT = 3
_FIGURES = [">norm A", ">norm B", ">norm of change", ">cosine", ">sign flips"]


@examples(
    "persona diff v3 v4",
    "persona diff v3 v4 --effect --replies 3",
    "persona diff v3 v4 --effect --html v4.html",
    "persona diff stable head --exit-code --json",
)
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="The older version.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The newer version.")] = "head",
    modules: Annotated[bool, typer.Option("--modules", help="Show each layer's modules too.")] = False,
    effect: Annotated[bool, typer.Option("--effect", help="Also measure what the change does, by the probes.")] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of each probe for --effect.", show_default="all")
    ] = None,
    replies: Annotated[
        int, typer.Option(min=0, help="With --effect: so many of the replies that changed most, side by side.")
    ] = 5,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.", show_default=False)
    ] = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 when the versions differ.")] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Show what changed from A to B: the recipe, the weights layer by layer and who owns the change, and with --effect
    the behavior, with the replies that changed most.
    """
    from personality.difference.difference import differ, measure_difference
    from personality.versions.history import History

    out = Output("diff", as_json=as_json)
    repository = open_repository(directory)
    old, new = History(repository).find(before), find_version(out, repository, after)[1]
    found = differ(repository, old, new)
    if effect:
        with out.progress("measure") as advance:
            measured = measure_difference(repository, old, new, rows=rows, replies=replies, on_step=advance)
        found = replace(found, measured=measured)
    if html is not None:
        from personality.difference.page.page import write_page

        write_page(found, html)
    out.result(found.as_json(), lambda: _show(out, found, modules=modules))
    if html is not None:
        out.note(f"the page: {html}")
    if exit_code and found.recipe:
        raise typer.Exit(_DIFFERENT)


def _show(out: Output, found: Difference, *, modules: bool) -> None:
    out.line(f"{found.before.label} → {found.after.label}", "bold")
    for change in found.recipe:
        out.line(f"  {change}")
    if not found.recipe:
        out.line("  the same recipe")
    if found.weights.layers:
        out.line()
        if modules:
            out.table(["layer", "module", *_FIGURES, ">changed", ">rounded"], module_rows(found.weights))
        else:
            out.table(["layer", *_FIGURES], layer_rows(list(found.weights.layers)))
        for line in owner_lines(found):
            out.line(line)
    if found.steering:
        out.line()
        out.table(
            ["steering after layer", "at", ">norm A", ">norm B", ">norm of change", ">cosine"],
            steering_rows(list(found.steering)),
        )
    if found.measured is None:
        return
    out.line()
    out.table(
        ["probe", ">A", ">B", ">change (95% interval)", ">P A", ">P B", ">change of P"],
        effect_rows(list(found.measured.effects)),
    )
    out.line(LEGEND)
    if further := further_rows(found.measured.effects):
        out.line()
        out.table(["probe", "further figures", ">A", ">B", ">change (95% interval)"], further)
    for transcript in found.measured.transcripts:
        out.line()
        show_transcript(out, transcript, (found.before.label, found.after.label))
