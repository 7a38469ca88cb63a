"""`persona redo`."""

from __future__ import annotations

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository, show_operation
from personality.cli.output import Output


@examples("persona redo", "persona redo && persona status", "persona redo --json")
def redo(as_json: JsonOption = False, directory: DirectoryOption = None) -> None:
    """Do again what `undo` took back."""
    from personality.versions.undoing import redo as redo_last

    out = Output("redo", as_json=as_json)
    show_operation(out, redo_last(open_repository(directory)))
