"""`persona revert`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output


@examples(
    "persona revert v3",
    'persona revert v3 -m "concise hurt the summaries"',
    "persona revert v3 --json",
)
def revert(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")],
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Take back what one version changed, and keep everything that came later."""
    from personality.versions.changes import revert as revert_version

    out = Output("revert", as_json=as_json)
    show_recorded(out, revert_version(open_repository(directory), version, message))
