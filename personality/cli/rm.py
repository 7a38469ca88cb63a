"""`persona rm`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output


@examples(
    "persona rm warm",
    'persona rm warm -m "too sweet for the release"',
    "persona rm warm --json",
)
def rm(
    behavior: Annotated[str, typer.Argument(help="A behavior in use.")],
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Take a behavior out of use, and record a version. Its vector, description and probes stay."""
    from personality.versions.changes import remove

    out = Output("rm", as_json=as_json)
    show_recorded(out, remove(open_repository(directory), behavior, message))
