"""`persona tag`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output
from personality.manifests.errors import UsageError


@examples("persona tag", "persona tag stable v4", "persona tag stable v5 --force")
def tag(
    name: Annotated[str, typer.Argument(help="The tag; without one, tags are listed.", show_default=False)] = "",
    version: Annotated[str, typer.Argument(help="What it points at.")] = "head",
    delete: Annotated[bool, typer.Option("--delete", help="Remove the tag.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Move a tag that exists.")] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Give a version a name that stays, list the tags, or remove one."""
    from personality.versions.changes import tag as tag_version
    from personality.versions.changes import untag
    from personality.versions.history import History

    out = Output("tag", as_json=as_json)
    repository = open_repository(directory)
    if delete:
        if not name:
            raise UsageError("which tag is to be removed?", "`persona tag NAME --delete`")
        untag(repository, name)
        out.result({"deleted": name}, lambda: out.line(f"removed the tag {name}"))
        return
    if name:
        found = tag_version(repository, name, version, force=force)
        label = History(repository).label(found)
        out.result({"tag": name, "version": found.id, "label": label}, lambda: out.line(f"{name} is {label}"))
        return
    history = History(repository)
    tags = {
        key: history.label(history.versions[target])
        for key, target in history.tags.items()
        if target in history.versions
    }
    out.result({"tags": tags}, lambda: out.table(["tag", "version"], list(tags.items())))
