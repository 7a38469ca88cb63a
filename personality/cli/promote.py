"""`persona promote`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality import processes
from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository
from personality.cli.output import Output
from personality.cli.run_lines import Speed, show_run
from personality.cli.tables import LEGEND, effect_rows
from personality.cli.training_options import (
    DATA,
    AllowRepeatsOption,
    BatchSizeOption,
    ExamplesOption,
    ForceOption,
    FreshOption,
    GeneralOption,
    GeneralRatioOption,
    GuardOption,
    LoraOption,
    MaxLengthOption,
    MethodOption,
    OptimizerOption,
    PreflightOption,
    ProbeRowsOption,
    RankOption,
    RateOption,
    SeedOption,
)
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.making.promotion import Promoted


@examples(
    "persona promote candid --data candid.jsonl --general general.jsonl",
    "persona promote candid --data candid.jsonl --general general.jsonl --scale 0.8 --lr 1e-5",
    "persona promote listening --data listening.jsonl --general general.jsonl --lora 16 --json",
)
def promote(
    behavior: Annotated[str, typer.Argument(help="Name of a behavior whose steering vector is in use.")],
    data: Annotated[
        Path,
        typer.Option(
            help="JSONL of examples: prompt, chosen, rejected, side.", show_default=False, rich_help_panel=DATA
        ),
    ],
    general: GeneralOption = None,
    general_ratio: GeneralRatioOption = None,
    example_count: ExamplesOption = None,
    fresh: FreshOption = False,
    allow_repeats: AllowRepeatsOption = False,
    max_length: MaxLengthOption = None,
    scale: Annotated[float, typer.Option(help="Scale of the trained vector in the new version.")] = 1.0,
    method: MethodOption = None,
    lr: RateOption = None,
    optimizer: OptimizerOption = None,
    rank: RankOption = None,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = None,
    lora: LoraOption = None,
    preflight: PreflightOption = True,
    force: ForceOption = False,
    guard: GuardOption = None,
    probe_rows: ProbeRowsOption = 40,
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> int:
    """Train what a steering vector does into the weights, and put the trained vector in its place.

    One new version is recorded. Shown are the predicted and the actual: where steering and where training moved the
    activations, and the behavior under steering beside that after training. The same command goes on with a training
    that was interrupted; other hyper-parameters are in persona.toml.
    """
    from personality.making.promotion import promote as promote_behavior
    from personality.making.promotion import steering_in_use
    from personality.making.training_job import TrainingJob
    from personality.making.training_run import check_job
    from personality.vectors.training.settings import fitting, make_settings

    out = Output("promote", as_json=as_json)
    repository = open_repository(directory)
    if not math.isfinite(scale):
        raise UsageError(f"a scale must be finite, got {scale}", "such as 0.8")
    steering_in_use(repository, behavior)  # told before the data are read
    given: dict[str, Any] = {
        "method": method,
        "lr": lr,
        "optimizer": optimizer,
        "rank": rank,
        "batch_size": batch_size,
        "general_ratio": general_ratio,
        "max_length": max_length,
        "seed": seed,
        "lora_rank": lora,
        "guard": guard,
    }
    given = {name: value for name, value in given.items() if value is not None}
    job = TrainingJob(
        behavior=behavior,
        data=data.absolute(),
        general=general.absolute() if general is not None else None,
        settings=make_settings(**fitting(repository.config().training, given)),
        examples=example_count,
        fresh=fresh,
        allow_repeats=allow_repeats,
        preflight=preflight,
        force=force,
        probe_rows=probe_rows,
    )
    check_job(job)
    speed = Speed()
    try:
        with out.progress(f"promote {behavior}") as advance:
            found = promote_behavior(
                repository,
                job,
                scale=scale,
                message=message,
                on_stage=lambda stage: advance(0, 1, stage),
                on_step=lambda step: advance(step.step, step.steps, speed.text(step)),
            )
    finally:
        processes.leave()
    out.result(found.as_json(), lambda: _show(out, found))
    if found.recorded is None:
        out.warn(
            f"the guard stopped the training: {found.use.label} stays in use; `persona show "
            f"{found.trained.manifest.label}` says why"
        )
    return 0 if found.recorded is not None else 3


def _show(out: Output, found: Promoted) -> None:
    manifest, shift = found.trained.manifest, found.shift
    if found.recorded is not None:
        out.line(f"{found.recorded.label}  {found.recorded.version.message}", "bold")
        for change in found.recorded.changes:
            out.line(f"  {change}")
    else:
        out.line(f"{manifest.label} is stored, {found.use.label} stays in use", "bold")
    show_run(out, manifest, "  ")
    place = {"decision": "the last token of the prompts", "response": "the replies", "all": "every token"}
    whose = "held-out texts of the probes" if shift.held_out else "texts of the training data"
    out.line()
    out.line(f"activations at {place[shift.positions]} of {shift.texts} {whose}: steered − base, and trained − base")
    out.table(
        [
            ">layer",
            ">cosine with the direction",
            ">cosine with steering",
            ">length steered",
            ">length trained",
            ">trained / steered",
        ],
        [
            (
                str(item.layer),
                f"{item.cosine:+.3f}",
                f"{item.agreement:+.3f}",
                f"{item.steered_length:.3f}",
                f"{item.length:.3f}",
                f"{item.ratio:.3f}" if item.ratio is not None else "–",
            )
            for item in shift.layers
        ],
    )
    out.note(
        f"steered: {found.use}, trained: {manifest.label} × {found.scale:g}, each alone on the base; lengths in units "
        f"of the activations; random directions have cosines of about ±{shift.chance:.2f}"
    )
    if found.effects:
        out.line()
        out.table(
            ["probe", ">steered", ">trained", ">change, points", ">P steered", ">P trained", ">change, points"],
            effect_rows(list(found.effects)),
        )
        out.note(LEGEND)
    if found.recorded is not None:
        out.note(f"back to steering: persona add {found.use.label} --scale {found.use.scale:g}")
