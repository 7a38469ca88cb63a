"""`persona import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent, size


@examples(
    "persona import polite ./runs/polite-sft",
    "persona import polite ./adapters/polite-lora",
    "persona import polite ./runs/polite-sft --json",
)
def import_(
    behavior: Annotated[str, typer.Argument(help="Name of the behavior.")],
    path: Annotated[Path, typer.Argument(help="Folder of a fine-tuned checkpoint or of a PEFT LoRA adapter.")],
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Make a vector of what a fine-tune of this base changed. LoRA adapters are kept low-rank."""
    from personality.making.importing import import_vector

    out = Output("import", as_json=as_json)
    repository = open_repository(directory)
    manifest, new, notes = import_vector(repository, behavior, path)

    def human() -> None:
        out.line(f"{manifest.label}{'' if new else ' (it was there already)'}", "bold")
        out.line(
            f"  {manifest.encoding}, {len(manifest.tensors)} tensors, {size(manifest.bytes)}, norm {manifest.norm:.4g}"
        )
        out.line(
            f"  at scale 1, {percent(manifest.rounding.share_changed)} of the touched elements change, "
            f"cosine to the update {manifest.rounding.cosine:.3f}"
        )
        for note in notes:
            out.line(f"  {note}")
        out.note(f"next: persona add {manifest.label} --scale 0.8")

    out.result({"vector": manifest.as_json(), "new": new, "notes": list(notes)}, human)
