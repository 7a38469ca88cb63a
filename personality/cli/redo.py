"""`persona redo`."""

from __future__ import annotations

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output


@examples("persona redo", "persona redo && persona status", "persona redo --json")
def redo(as_json: JsonOption = False, directory: DirectoryOption = None) -> None:
    """Do again what `undo` took back."""
    from personality.versions.undoing import redo as redo_last

    out = Output("redo", as_json=as_json)
    operation = redo_last(open_repository(directory))
    files = [change.path for change in operation.changes]
    out.result(
        {"operation": operation.command, "files": files},
        lambda: out.line(f"{operation.command} ({len(files)} file{'' if len(files) == 1 else 's'})"),
    )
