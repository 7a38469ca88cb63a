"""`persona show`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.encoding_options import residual_text
from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent, sides_text, size
from personality.cli.run_lines import show_measures, show_run
from personality.cli.steering_lines import kind_text, show_steering
from personality.manifests.manifest import Manifest
from personality.manifests.repository import Repository


@examples("persona show listening@2", "persona show v4", "persona show stable --json")
def show(
    name: Annotated[str, typer.Argument(help="A vector (NAME or NAME@N) or a version (v4, a tag, an id).")],
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Show one vector or one version whole."""
    from personality.manifests.names import VectorLabel
    from personality.versions.recipe import find_vector

    out = Output("show", as_json=as_json)
    repository = open_repository(directory)
    behaviors = {manifest.behavior for manifest in repository.manifests()}
    if "@" in name or name in behaviors:
        labels = {item.id: item.label for item in repository.manifests()}
        _show_vector(out, find_vector(repository, VectorLabel.parse(name)), labels)
    else:
        _show_version(out, repository, name, behaviors)


def _show_vector(out: Output, manifest: Manifest, known: dict[str, str]) -> None:
    def human() -> None:
        making = manifest.making
        out.line(f"{manifest.label}  {manifest.description}", "bold")
        rows = [
            ("id", manifest.id),
            ("base", str(manifest.base)),
            ("kind", f"{manifest.kind}, {manifest.encoding}, {len(manifest.tensors)} tensors, {size(manifest.bytes)}"),
            ("norm", f"{manifest.norm:.6g}"),
            ("made", f"{manifest.created[:19]}Z by {f'{making.how} {making.source}'.strip()}, {making.seconds:g} s"),
        ]
        for data in making.data:
            sides = sides_text(data.sides)
            rows.append(
                (
                    f"{data.role} data",
                    f"{data.name}, {data.examples} examples{f' ({sides})' if sides else ''}, {data.digest[:12]}",
                )
            )
        if making.settings:
            shown = ", ".join(
                f"{key} {value}" for key, value in sorted(making.settings.items()) if value not in (None, False)
            )
            rows.append(("settings", shown))
        rows.append(("tools", ", ".join(f"{key} {value}" for key, value in sorted(making.tools.items()))))
        if manifest.rounding is not None:
            lost = manifest.rounding
            text = f"{percent(lost.share_changed)} of the touched elements change, cosine {lost.cosine:.4f}"
            rows.append(("rounding", text))
        if manifest.residual is not None:
            rows.append(("residual", residual_text(manifest.residual)))
        if manifest.lineage:
            rows.append(("made from", ", ".join(known.get(item, item[:12]) for item in manifest.lineage)))
        out.table(["", ""], rows)
        show_measures(out, manifest, "")
        show_run(out, manifest, "")
        show_steering(out, manifest, "")

    out.result({"vector": manifest.as_json()}, human)


def _show_version(out: Output, repository: Repository, name: str, behaviors: set[str]) -> None:
    from personality.manifests.errors import NotFoundError
    from personality.manifests.names import did_you_mean
    from personality.versions.history import History

    history = History(repository)
    try:
        version = history.find(name)
    except NotFoundError:
        known = [*behaviors, *(history.label(item) for item in history.versions.values()), *history.tags]
        raise NotFoundError(f"there is no vector or version `{name}`", did_you_mean(name, known)) from None

    def human() -> None:
        tags = history.tags_of(version)
        names = f" ({', '.join(tags)})" if tags else ""
        out.line(f"{history.label(version)}{names}  {version.message}", "bold")
        parents = ", ".join(history.label(history.versions[parent]) for parent in version.parents)
        out.table(
            ["", ""],
            [
                ("id", version.id),
                ("time", f"{version.time[:19]}Z"),
                ("parents", parents or "none"),
                ("base", str(version.personality.base)),
                ("composition", str(version.personality.composition)),
            ],
        )
        kinds = {item.id: kind_text(item) for item in repository.manifests()}
        for use in version.personality.uses:
            out.line(f"  {use}  ({kinds.get(use.vector, 'missing')}; {use.vector[:12]})")

    out.result({"version": version.as_json(), "label": history.label(version)}, human)
