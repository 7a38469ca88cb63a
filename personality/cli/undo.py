"""`persona undo`."""

from __future__ import annotations

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository, show_operation
from personality.cli.output import Output


@examples("persona undo", "persona undo && persona status", "persona undo --json")
def undo(as_json: JsonOption = False, directory: DirectoryOption = None) -> None:
    """Take the last change back; again and again walks further back."""
    from personality.versions.undoing import undo as undo_last

    out = Output("undo", as_json=as_json)
    show_operation(out, undo_last(open_repository(directory)))
