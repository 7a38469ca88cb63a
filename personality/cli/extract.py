"""`persona extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, size
from personality.cli.steering_lines import show_steering
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.making.extraction_job import Source
    from personality.making.extraction_store import Extracted
    from personality.manifests.repository import Repository


@examples(
    "persona extract candid --pairs data/candid.jsonl --general data/general.jsonl",
    "persona extract candid --pairs data/candid.jsonl --prompts data/candid.prompts.json --general data/general.jsonl",
    "persona extract warm --pairs texts.jsonl --positions all --layers 10-20 --general general.jsonl",
    "persona extract listening --from listening@2 --pairs data/listening.jsonl --general data/general.jsonl",
)
def extract(
    behavior: Annotated[str, typer.Argument(help="Name of the behavior.")],
    pairs: Annotated[
        Path, typer.Option(help="Triplets, positive/negative texts, multiple choice, or system prompts with questions.")
    ],
    general: Annotated[
        Path | None, typer.Option(help="General examples, by which scale 1 is found.", show_default="the pairs")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="System prompts for and against the behavior.", show_default="none")
    ] = None,
    source: Annotated[
        str, typer.Option("--from", help="Derive the direction from this task vector.", show_default="a contrast")
    ] = "",
    form: Annotated[
        Literal["triplets", "texts", "multiple-choice", "system-prompts"] | None,
        typer.Option("--format", help="Of the pairs' file.", show_default="seen from its fields"),
    ] = None,
    side: Annotated[
        Literal["accept", "push_back", "both"], typer.Option(help="Which triplets (those that name no side too).")
    ] = "accept",
    examples_: Annotated[
        int | None, typer.Option("--examples", min=4, help="Use so many pairs.", show_default="all")
    ] = None,
    context: Annotated[
        Literal["answers", "shots", "system"] | None,
        typer.Option(help="In what the sides differ: replies, earlier turns, system turn.", show_default="tries them"),
    ] = None,
    read: Annotated[
        Literal["response", "content", "first", "decision", "divergence"] | None,
        typer.Option(help="Token positions that are read.", show_default="tries those that suit"),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Earlier turns on each side.")] = 2,
    method: Annotated[
        Literal["mean", "pca", "pca-centered", "logistic"], typer.Option(help="How the direction is found.")
    ] = "mean",
    denoise: Annotated[
        int | None,
        typer.Option(min=1, help="Keep only the first N directions that the layer writes to.", show_default="all"),
    ] = None,
    positions: Annotated[
        Literal["all", "response", "decision"] | None,
        typer.Option(help="Where it acts: everywhere, on the reply, at the prompt's last token.", show_default="tries"),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Layers A-B to choose from; with --no-auto, all of them together.", show_default="tries")
    ] = "",
    mode: Annotated[
        Literal["add", "project", "norm-preserving"], typer.Option(help="Add it, project it out, or turn by it.")
    ] = "add",
    auto: Annotated[
        bool, typer.Option("--auto/--no-auto", help="Search contexts, positions, layers and scale on the probes.")
    ] = True,
    when: Annotated[
        Path | None, typer.Option(help="Act only on prompts like these (with --unless).", show_default="always")
    ] = None,
    unless: Annotated[
        Path | None, typer.Option(help="Do not act on prompts like these (with --when).", show_default="always")
    ] = None,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Measure it against placebos and a prompt.")] = True,
    placebos: Annotated[int, typer.Option(min=0, help="Random directions to compare with.")] = 5,
    rows: Annotated[int | None, typer.Option(min=2, help="Rows of each probe.")] = 40,
    held_out: Annotated[float, typer.Option(help="Share of the pairs that only test.")] = 0.25,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a text.", show_default="the base's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw layers and dose-response into this PNG.", show_default="none")
    ] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Find a behavior's direction in activation space, prove it, and say what its scale means."""
    from personality.making.extraction_job import ExtractionJob
    from personality.making.extraction_run import extract_behavior
    from personality.manifests.personality_record import LayerRange

    out = Output("extract", as_json=as_json)
    if plot is not None:
        from personality.making.sweep_plot import check_plot

        check_plot(plot)  # before anything takes time
    repository = open_repository(directory)
    if (when is None) != (unless is None):
        raise UsageError("a condition needs both kinds of prompts", "give `--when FILE` and `--unless FILE`")
    if not 0 < held_out < 1:
        raise UsageError(f"--held-out {held_out:g}", "give a share between 0 and 1, such as 0.25")
    job = ExtractionJob(
        behavior=behavior,
        pairs=pairs,
        form=form,
        side=side,
        examples=examples_,
        prompts=prompts,
        general=general,
        source=_source(repository, source) if source else None,
        context=context,
        read=read,
        shots=shots,
        method=method,
        denoise=denoise,
        mode=mode,
        positions=positions,
        layers=LayerRange.parse(layers) if layers else None,
        auto=auto,
        when=when,
        unless=unless,
        max_length=max_length,
        held_out=held_out,
        placebos=placebos,
        probe_rows=rows,
        prove=prove,
        seed=seed,
    )
    with out.progress("extract") as advance:
        found = extract_behavior(repository, job, on_stage=lambda stage: advance(0, 1, stage), on_step=advance)
    if plot is not None:
        from personality.proving.plot import plot_steering

        assert found.manifest.steering is not None
        plot_steering(found.manifest.steering, found.manifest.label, plot)
    _show(out, found, plot)


def _source(repository: Repository, label: str) -> Source:
    from personality.making.extraction_job import Source
    from personality.manifests.names import VectorLabel
    from personality.versions.recipe import find_vector

    manifest = find_vector(repository, VectorLabel.parse(label))
    if manifest.kind != "task":
        raise UsageError(
            f"`{manifest.label}` is a steering vector already",
            "`--from` takes a task vector: `persona vectors` shows which are",
        )
    return Source(vector=manifest.id, label=manifest.label)


def _show(out: Output, found: Extracted, plot: Path | None) -> None:
    manifest = found.manifest

    def human() -> None:
        word = "" if found.new else " (it was there already: same pairs, settings and seed)"
        out.line(f"{manifest.label}{word}", "bold")
        out.line(f"  steering vector, {len(manifest.tensors)} tensors, {size(manifest.bytes)}, {found.seconds:.1f} s")
        show_steering(out, manifest, "  ")
        for note in found.notes:
            out.line(f"  {note}")
        if plot is not None:
            out.line(f"  plot: {plot}")
        scale = manifest.suggested_scale[1] if manifest.suggested_scale else 1.0
        out.note(f"next: persona add {manifest.label} --scale {scale:g}")

    out.result(
        {"vector": manifest.as_json(), "new": found.new, "seconds": found.seconds, "notes": list(found.notes)}, human
    )
    if manifest.steering is not None and not manifest.steering.proven:
        out.warn(f"`{manifest.label}` is unproven: use it to explore, not to deploy")
