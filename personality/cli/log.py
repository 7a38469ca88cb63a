"""`persona log`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output
from personality.manifests.canonical import short


@examples("persona log", "persona log -n 5", "persona log --json")
def log(
    count: Annotated[
        int | None, typer.Option("-n", min=1, help="Show only the newest so many.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """List the versions, newest first: what changed and why."""
    from personality.versions.history import History
    from personality.versions.recipe import compare_recipes

    out = Output("log", as_json=as_json)
    history = History(open_repository(directory))
    newest = list(reversed(history.versions.values()))[:count]
    entries = []
    for version in newest:
        parent = history.versions[version.parents[0]] if version.parents else None
        changes = compare_recipes(parent.personality, version.personality) if parent else []
        entries.append((version, [str(change) for change in changes]))

    def human() -> None:
        rows = []
        for version, changes in entries:
            tags = history.tags_of(version)
            label = history.label(version) + (f" ({', '.join(tags)})" if tags else "")
            what = "; ".join(changes) or str(version.personality)
            rows.append((label, version.time[:16].replace("T", " "), version.message, what, short(version.id)))
        out.table(["version", "time (UTC)", "message", "change", "id"], rows)

    out.result(
        {
            "versions": [
                {
                    **version.as_json(),
                    "label": history.label(version),
                    "tags": history.tags_of(version),
                    "changes": changes,
                }
                for version, changes in entries
            ]
        },
        human,
    )
