"""`persona import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from personality.cli.encoding_options import DensityOption, EncodingOption, RankOption, chosen_encoding, show_residual
from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent, size
from personality.cli.steering_lines import show_steering
from personality.manifests.errors import UsageError
from personality.manifests.personality_record import LayerRange


@examples(
    "persona import polite ./runs/polite-sft",
    "persona import polite ./runs/polite-sft --encoding exact",
    "persona import polite ./adapters/polite-lora",
    "persona import happy ./happy.gguf --layers 10-20",
    "persona import evil ./evil_response_avg_diff.pt --layers 19",
)
def import_(
    behavior: Annotated[str, typer.Argument(help="Name of the behavior.")],
    path: Annotated[
        Path,
        typer.Argument(
            help="Folder of a fine-tuned checkpoint or of a PEFT LoRA adapter; or a file of directions: a llama.cpp or "
            "repeng control vector (.gguf), .safetensors, or persona_vectors' .pt."
        ),
    ],
    encoding: EncodingOption = None,
    density: DensityOption = None,
    rank: RankOption = None,
    positions: Annotated[
        Literal["all", "response", "decision"] | None,
        typer.Option(
            help="Directions: where they act. Default: as the program that made the file does.", show_default=False
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Directions: the layers to act in, such as 10-20. Default: all of the file.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Make a vector of what a fine-tune of this base changed, or of directions that another program found.

    A checkpoint's difference is kept as `delta`, or in the encoding asked for (docs/encodings.md). LoRA adapters are
    kept low-rank. Directions keep the strength that they have in the file.
    """
    from personality.making.importing import import_vector
    from personality.making.importing_directions import import_directions
    from personality.vectors.interop.reading import is_directions_file

    out = Output("import", as_json=as_json)
    repository = open_repository(directory)
    where = LayerRange.parse(layers) if layers is not None else None
    chosen = chosen_encoding(encoding, density, rank)
    if is_directions_file(path):
        if chosen is not None:
            raise UsageError(f"--encoding is for checkpoints; {path} is a file of directions", "leave it out")
        manifest, new, notes = import_directions(repository, behavior, path, positions=positions, layers=where)
    elif positions is not None or where is not None:
        raise UsageError(
            f"--positions and --layers are for a file of directions; {path} is none",
            "give a .gguf, .safetensors or .pt file, or leave them out",
        )
    else:
        with out.progress(f"import {behavior}") as advance:
            manifest, new, notes = import_vector(repository, behavior, path, chosen, on_tensor=advance)

    def human() -> None:
        out.line(f"{manifest.label}{'' if new else ' (it was there already)'}", "bold")
        out.line(
            f"  {manifest.encoding}, {len(manifest.tensors)} tensors, {size(manifest.bytes)}, norm {manifest.norm:.4g}"
        )
        show_residual(out, manifest, "  ")
        if manifest.rounding is not None:
            out.line(
                f"  at scale 1, {percent(manifest.rounding.share_changed)} of the touched elements change, "
                f"cosine to the update {manifest.rounding.cosine:.3f}"
            )
        show_steering(out, manifest, "  ")
        for note in notes:
            out.line(f"  {note}")
        out.note(f"next: persona add {manifest.label} --scale {0.8 if manifest.kind == 'task' else 1}")

    out.result({"vector": manifest.as_json(), "new": new, "notes": list(notes)}, human)
