"""`persona restore`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output


@examples(
    "persona restore v3",
    'persona restore stable -m "back to the release"',
    "persona restore v3 --json",
)
def restore(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")],
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Go back to a version exactly. A new version records it; unsaved edits are dropped (`undo` brings them back)."""
    from personality.versions.changes import restore as restore_version

    out = Output("restore", as_json=as_json)
    show_recorded(out, restore_version(open_repository(directory), version, message))
