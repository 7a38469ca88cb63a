"""`persona verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output

_PROBLEMS = 3


@examples("persona verify", "persona verify v4 out/", "persona verify --json")
def verify(
    version: Annotated[
        str, typer.Argument(help="A version to compare a folder with; none checks the repository.", show_default=False)
    ] = "",
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="An export; none takes the version's build.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Read every byte and tell whether it is what its name says. Exits with 3 when something is not.

    Without arguments: base, versions, vectors and builds. With a version: compares a checkpoint with the version,
    composed now, and tells corrupt, rebuilt within tolerance, and different apart.
    """
    from personality.builds.build import build_path
    from personality.builds.verify import verify_folder, verify_repository
    from personality.versions.history import History

    out = Output("verify", as_json=as_json)
    repository = open_repository(directory)
    if version:
        found = History(repository).find(version)
        findings = [verify_folder(repository, found, folder or build_path(repository, found))]
    else:
        findings = list(verify_repository(repository))

    def human() -> None:
        out.table(["", "status", ""], [(item.what, item.status, item.detail) for item in findings])
        for item in findings:
            if not item.good and item.hint:
                out.note(f"{item.what}: {item.hint}")

    out.result({"findings": [asdict(item) for item in findings]}, human)
    if not all(item.good for item in findings):
        raise typer.Exit(_PROBLEMS)
