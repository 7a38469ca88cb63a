"""`persona encode`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from personality.cli.encoding_options import (
    DensityOption,
    EncodingName,
    RankOption,
    chosen_encoding,
    show_residual,
)
from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent, size


@examples(
    "persona encode listening@3 --as sparse --density 0.2",
    "persona encode listening@3 --as low-rank --rank 64",
    "persona encode polite --as exact --json",
)
def encode(
    name: Annotated[str, typer.Argument(help="A task vector: NAME or NAME@N.")],
    encoding: Annotated[
        EncodingName, typer.Option("--as", help="How to keep it: dense, exact bits, trimmed, or as factors.")
    ],
    density: DensityOption = None,
    rank: RankOption = None,
    trim_scope: Annotated[
        Literal["vector", "tensor"],
        typer.Option(help="Of sparse: keep that share of the whole vector, or of each tensor."),
    ] = "vector",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Store a task vector once more in another encoding, as the next vector of its behavior.

    What the encoding loses is measured and told (docs/encodings.md). The old vector stays.
    """
    from personality.making.reencoding import encode_vector
    from personality.manifests.names import VectorLabel

    out = Output("encode", as_json=as_json)
    repository = open_repository(directory)
    chosen = chosen_encoding(encoding, density, rank, trim_scope)
    assert chosen is not None  # the encoding is given
    with out.progress(f"encode {name}") as advance:
        manifest, new, notes = encode_vector(repository, VectorLabel.parse(name), chosen, on_tensor=advance)
    before = {item.id: item for item in repository.manifests()}
    old = next((before[item] for item in manifest.lineage if item in before), None)

    def human() -> None:
        out.line(f"{manifest.label}{'' if new else ' (it was there already)'}", "bold")
        share = f", {percent(manifest.bytes / old.bytes)} of {old.label}" if old is not None and old.bytes else ""
        out.line(f"  {manifest.encoding}, {len(manifest.tensors)} tensors, {size(manifest.bytes)}{share}")
        show_residual(out, manifest, "  ")
        for note in notes:
            out.line(f"  {note}")
        out.note(f"next: persona add {manifest.label}")

    out.result({"vector": manifest.as_json(), "new": new, "notes": list(notes)}, human)
