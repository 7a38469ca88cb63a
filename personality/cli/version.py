"""`persona version`."""

from __future__ import annotations

from personality import __version__
from personality.cli.options import DirectoryOption, JsonOption, enter, examples
from personality.cli.output import Output


@examples("persona version", "persona version --json", "persona version -C project --json")
def version(as_json: JsonOption = False, directory: DirectoryOption = None) -> None:
    """Print the version of this program."""
    enter(directory)
    out = Output("version", as_json=as_json)
    out.result({"version": __version__}, lambda: out.line(f"persona {__version__}"))
