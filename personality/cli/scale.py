"""`persona scale`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output


@examples(
    "persona scale listening 0.6",
    "persona scale listening -1",
    'persona scale warm 0 -m "off for the release"',
)
def scale(
    behavior: Annotated[str, typer.Argument(help="A behavior in use.")],
    factor: Annotated[float, typer.Argument(metavar="SCALE", help="The new scale.")],
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Change the scale of a behavior in use, and record a version."""
    from personality.versions.changes import rescale

    out = Output("scale", as_json=as_json)
    show_recorded(out, rescale(open_repository(directory), behavior, factor, message))
