"""`persona add`."""

from __future__ import annotations

from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output


@examples(
    "persona add listening --scale 0.8",
    "persona add listening@2 --scale 0.5 --layers 10-20",
    'persona add flattery --scale -1 -m "take the flattery out"',
)
def add(
    vector: Annotated[str, typer.Argument(help="NAME (its newest vector) or NAME@N.")],
    scale: Annotated[float, typer.Option(help="Factor on the vector; negative takes the behavior away.")] = 1.0,
    layers: Annotated[str, typer.Option(help="Only in layers A-B, both included.", show_default="all")] = "",
    density: Annotated[
        float | None, typer.Option(help="TIES density of this vector.", show_default="the method's")
    ] = None,
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Put a behavior's vector into use at a scale, and record a version."""
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import LayerRange
    from personality.versions.changes import add as add_use

    out = Output("add", as_json=as_json)
    repository = open_repository(directory)
    where = LayerRange.parse(layers) if layers else None
    label = VectorLabel.parse(vector)
    if density is not None and repository.config().composition.method == "linear":
        out.warn("`linear` keeps every element: the density takes effect with `persona method ties`")
    show_recorded(out, add_use(repository, label, scale, layers=where, density=density, message=message))
