"""`persona train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent, sides_text, size
from personality.cli.tables import P_MEANS, measure_rows
from personality.manifests.errors import UsageError


@examples(
    "persona train listening --data listening.jsonl --general general.jsonl",
    "persona train concise --data concise.jsonl --general general.jsonl --method sft --lr 2e-5",
    "persona train warm --data warm.jsonl --general general.jsonl --optimizer apollo-mini --examples 50",
)
def train(
    behavior: Annotated[str, typer.Argument(help="Name of the behavior.")],
    data: Annotated[Path, typer.Option(help="JSONL of examples: prompt, chosen, rejected, side.")],
    general: Annotated[
        Path | None, typer.Option(help="JSONL of general examples, against forgetting.", show_default=False)
    ] = None,
    method: Annotated[Literal["sft", "orpo"] | None, typer.Option(help="Objective.", show_default="orpo")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="by model size")] = None,
    optimizer: Annotated[
        Literal["apollo", "apollo-mini", "adamw"] | None, typer.Option(help="Optimizer.", show_default="apollo")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of Apollo's projection.", show_default="256")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples in a batch, general ones included.", show_default="5")
    ] = None,
    general_ratio: Annotated[
        float | None, typer.Option(help="General examples per example of the behavior.", show_default="0.25")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest dialogue, in tokens.", show_default="2048")] = None,
    seed: Annotated[int | None, typer.Option(help="Of order and projections.", show_default="0")] = None,
    train_embeddings: Annotated[bool, typer.Option("--train-embeddings", help="Train embeddings too.")] = False,
    train_norms: Annotated[bool, typer.Option("--train-norms", help="Train normalization weights too.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Save memory, take more time.")
    ] = False,
    example_count: Annotated[
        int | None, typer.Option("--examples", min=1, help="Use only so many, from the top.", show_default="all")
    ] = None,
    probe_rows: Annotated[int, typer.Option(min=0, help="Rows per probe measured before and after; 0 for none.")] = 40,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Train one behavior on the base with Apollo, in one pass, and store the difference as a vector.

    Defaults can be set under [training] in persona.toml.
    """
    from personality.making.training_run import train_behavior
    from personality.vectors.training.settings import make_settings

    out = Output("train", as_json=as_json)
    repository = open_repository(directory)
    given: dict[str, Any] = {
        "method": method,
        "lr": lr,
        "optimizer": optimizer,
        "rank": rank,
        "batch_size": batch_size,
        "general_ratio": general_ratio,
        "max_length": max_length,
        "seed": seed,
        "train_embeddings": train_embeddings or None,
        "train_norms": train_norms or None,
        "gradient_checkpointing": gradient_checkpointing or None,
    }
    chosen = {**repository.config().training, **{name: value for name, value in given.items() if value is not None}}
    settings = make_settings(**chosen)
    if general is None and settings.general_ratio > 0:
        raise UsageError(
            "no general data: training on one behavior alone makes a model forget the rest",
            "give `--general FILE`, or say that you want it so with `--general-ratio 0`",
        )
    if general is not None and general.resolve() == data.resolve():
        raise UsageError(
            f"{data} is given both as the behavior's data and as general data", "general data is other data"
        )
    with out.progress(f"train {behavior}") as advance:
        trained = train_behavior(
            repository,
            behavior,
            data,
            general,
            settings,
            examples=example_count,
            probe_rows=probe_rows,
            on_stage=lambda stage: advance(0, 1, stage),
            on_step=lambda step: advance(step.step, step.steps, _step_text(step)),
        )
    manifest, report = trained.manifest, trained.report
    rounding = manifest.rounding

    def human() -> None:
        word = "" if trained.new else " (it was there already: same data, settings and seed)"
        out.line(f"{manifest.label}{word}", "bold")
        used = sides_text(report.sides)
        of_behavior = f"{report.behavior_examples} examples{f' ({used})' if used else ''}"
        out.line(f"  {of_behavior} + {report.general_examples} general, {report.steps} steps, {report.seconds:.2f} s")
        out.line(f"  {settings.method} by {settings.optimizer}, learning rate {report.settings.lr:g}")
        out.line(f"  {len(manifest.tensors)} tensors, {size(manifest.bytes)}, norm {manifest.norm:.4g}")
        out.line(
            f"  after rounding to the base's dtype {percent(rounding.share_changed)} of the touched elements change, "
            f"cosine to the update {rounding.cosine:.3f}"
        )
        if manifest.measures:
            out.table(["  probe", ">before", ">after", ">P before", ">P after"], measure_rows(manifest.measures, "  "))
            out.note(P_MEANS)
        out.note(f"next: persona add {manifest.label} --scale 0.8")

    out.result(
        {
            "vector": manifest.as_json(),
            "new": trained.new,
            "seconds": report.seconds,
            "steps": report.steps,
            "losses": list(report.losses),
        },
        human,
    )
    if rounding.warning_due:
        out.warn(
            f"much of this update is lost when it is rounded (cosine {rounding.cosine:.2f}): "
            "use a larger learning rate, or more examples"
        )


def _step_text(step: Any) -> str:
    margin = "" if step.margin is None else f", margin {step.margin:+.2f}"
    return f"step {step.step}/{step.steps}, loss {step.loss:.3f}{margin}"
