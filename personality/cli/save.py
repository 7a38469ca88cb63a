"""`persona save`."""

from __future__ import annotations

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output


@examples(
    'persona save -m "softer for support chats"',
    "persona save",
    "persona save --json",
)
def save(message: MessageOption = "", as_json: JsonOption = False, directory: DirectoryOption = None) -> None:
    """Record hand edits of persona.toml and behaviors/*.toml as a version."""
    from personality.versions.changes import save as save_files

    out = Output("save", as_json=as_json)
    show_recorded(out, save_files(open_repository(directory), message))
