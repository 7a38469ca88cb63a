"""`persona train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from personality import processes
from personality.cli.live_lines import show_live
from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent, sides_text, size
from personality.cli.run_lines import Speed, show_measures, show_run
from personality.cli.training_options import (
    DATA,
    OBJECTIVE,
    RUN,
    WATCH,
    WEIGHTS,
    AllowRepeatsOption,
    BatchSizeOption,
    BetaOption,
    ExamplesOption,
    ForceOption,
    FreshOption,
    GeneralOption,
    GeneralRatioOption,
    GuardOption,
    LiveEveryOption,
    LiveKeepOption,
    LiveOption,
    LiveScaleOption,
    LoraOption,
    MaxLengthOption,
    MethodOption,
    OptimizerOption,
    OrpoLambdaOption,
    PreflightOption,
    ProbeRowsOption,
    RankOption,
    RateOption,
    SeedOption,
)
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.live.publishing import LiveOptions
    from personality.making.training_job import AvoidOptions, PreventOptions
    from personality.making.training_run import Trained
    from personality.manifests.repository import Repository


_LIVE = ("live", "live_every", "live_scale", "live_keep")
_WITH_RESUME = ("behavior", "resume", "tensorboard", *_LIVE, "as_json", "directory")
"""What may be said to a run that was interrupted; the rest is what it began with."""


@examples(
    "persona train listening --data listening.jsonl --general general.jsonl",
    "persona train concise --data concise.jsonl --general general.jsonl --method dpo --lora 16",
    "persona train listening --resume",
    "persona train listening --data listening.jsonl --general general.jsonl --live http://127.0.0.1:8000",
)
def train(
    invocation: typer.Context,
    behavior: Annotated[str, typer.Argument(help="Name of the behavior.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of examples: prompt, chosen, rejected, side.", show_default=False, rich_help_panel=DATA
        ),
    ] = None,
    general: GeneralOption = None,
    general_ratio: GeneralRatioOption = None,
    example_count: ExamplesOption = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many at the top.", rich_help_panel=DATA)] = 0,
    fresh: FreshOption = False,
    allow_repeats: AllowRepeatsOption = False,
    max_length: MaxLengthOption = None,
    method: MethodOption = None,
    lr: RateOption = None,
    dpo_lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate of the second phase of sft-dpo.",
            show_default="by model size",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    beta: BetaOption = None,
    orpo_lambda: OrpoLambdaOption = None,
    optimizer: OptimizerOption = None,
    rank: RankOption = None,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = None,
    contrastive: Annotated[
        bool,
        typer.Option(
            "--contrastive",
            help="Train toward and away from the behavior, keep the difference.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = False,
    lora: LoraOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Train only these groups, such as attention.q or gdn; may be repeated.",
            show_default=False,
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Train only these layers, such as 10-20.", show_default=False, rich_help_panel=WEIGHTS),
    ] = None,
    train_embeddings: Annotated[
        bool, typer.Option("--train-embeddings", help="Train embeddings too.", rich_help_panel=WEIGHTS)
    ] = False,
    train_norms: Annotated[
        bool, typer.Option("--train-norms", help="Train normalization weights too.", rich_help_panel=WEIGHTS)
    ] = False,
    weights: Annotated[
        Literal["float32", "bf16-compensated", "bf16-stochastic", "bf16"] | None,
        typer.Option(help="How trained weights are kept in memory.", show_default="float32", rich_help_panel=WEIGHTS),
    ] = None,
    context: Annotated[
        Literal["full", "frozen"] | None,
        typer.Option(
            help="Whether gradients flow through the prompts too.", show_default="full", rich_help_panel=WEIGHTS
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Save memory, take more time.", rich_help_panel=WEIGHTS),
    ] = False,
    preflight: PreflightOption = True,
    force: ForceOption = False,
    guard: GuardOption = None,
    avoid: Annotated[
        str | None,
        typer.Option(
            help="Vector whose direction the updates are kept out of.", show_default=False, rich_help_panel=WATCH
        ),
    ] = None,
    avoid_top: Annotated[
        int,
        typer.Option(min=0, help="Singular vectors that the direction is reduced to; 0: all.", rich_help_panel=WATCH),
    ] = 16,
    avoid_two_sided: Annotated[
        bool,
        typer.Option("--avoid-two-sided", help="Remove movements away from it too.", rich_help_panel=WATCH),
    ] = False,
    keep_magnitude: Annotated[
        bool, typer.Option("--keep-magnitude", help="Keep the length of projected updates.", rich_help_panel=WATCH)
    ] = False,
    prevent: Annotated[
        str | None,
        typer.Option(
            help="Steering vector that acts while training, so that the weights need not learn it.",
            show_default=False,
            rich_help_panel=WATCH,
        ),
    ] = None,
    prevent_scale: Annotated[
        float, typer.Option(help="Scale of the vector given with --prevent.", rich_help_panel=WATCH)
    ] = 1.0,
    prevent_layers: Annotated[
        str, typer.Option(help="Layers in which it acts, A-B.", show_default="its own", rich_help_panel=WATCH)
    ] = "",
    placebo: Annotated[
        bool,
        typer.Option(
            "--placebo/--no-placebo", help="With --avoid, also avoid a random direction.", rich_help_panel=WATCH
        ),
    ] = True,
    auto: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Up to so many rounds on fresh examples, each changed as the last verdict says.",
            show_default=False,
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=RUN)
    ] = False,
    check_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between checkups; each is followed by a checkpoint.",
            show_default="a fifth of the run",
            rich_help_panel=RUN,
        ),
    ] = None,
    probe_rows: ProbeRowsOption = 40,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Folder for TensorBoard's files.", show_default=False, rich_help_panel=RUN),
    ] = None,
    live: LiveOption = "",
    live_every: LiveEveryOption = None,
    live_scale: LiveScaleOption = 1.0,
    live_keep: LiveKeepOption = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> int:
    """Train one behavior on the base, in one pass, and store the difference as a vector.

    Diagnosed before, guarded during, judged after. The table `training` of persona.toml sets defaults. The same
    command goes on with a run that was interrupted. Under `accelerate launch` several processes share every batch.
    """
    from personality.cli.auto import train_rounds
    from personality.making.run_folder import unfinished_run
    from personality.making.training_job import TrainingJob
    from personality.making.training_run import check_job, train_behavior
    from personality.vectors.training.settings import fitting, make_settings

    out = Output("train", as_json=as_json)
    repository = open_repository(directory)
    given: dict[str, Any] = {
        "method": method,
        "lr": lr,
        "dpo_lr": dpo_lr,
        "dpo_beta": beta,
        "orpo_lambda": orpo_lambda,
        "optimizer": optimizer,
        "rank": rank,
        "batch_size": batch_size,
        "general_ratio": general_ratio,
        "max_length": max_length,
        "seed": seed,
        "lora_rank": lora,
        "only": tuple(only) if only else None,
        "layers": layers,
        "train_embeddings": train_embeddings or None,
        "train_norms": train_norms or None,
        "weights": weights,
        "context": context,
        "gradient_checkpointing": gradient_checkpointing or None,
        "guard": guard,
        "check_every": check_every,
    }
    given = {name: value for name, value in given.items() if value is not None}
    served = _live(live, live_every, live_scale, live_keep, auto)
    unfinished = None
    if resume:
        typed = [option for name, option in _typed(invocation).items() if name not in _WITH_RESUME]
        if typed:
            raise UsageError(
                f"--resume goes on with a run's own data and settings, and {typed[0]} is one of these",
                f"leave out the other options: `persona train {behavior} --resume`",
            )
        unfinished = unfinished_run(repository, behavior)
        job = unfinished.job
    else:
        if data is None:
            raise UsageError("no data to train on", "give `--data FILE`, or `--resume` an interrupted run")
        job = TrainingJob(
            behavior=behavior,
            data=data.absolute(),
            general=general.absolute() if general is not None else None,
            settings=make_settings(**fitting(repository.config().training, given)),
            skip=skip,
            examples=example_count,
            fresh=fresh,
            allow_repeats=allow_repeats,
            contrastive=contrastive,
            avoid=_avoid(repository, avoid, avoid_two_sided, keep_magnitude, avoid_top, placebo),
            prevent=_prevent(repository, prevent, prevent_scale, prevent_layers),
            preflight=preflight,
            force=force,
            probe_rows=probe_rows,
        )
        check_job(job)
        rate = repository.config().training.get("lr")
        if rate is not None and "lr" not in given and job.settings.lr is None:
            out.note(
                f"the learning rate in persona.toml, {rate:g}, is for another method or for whole weights: "
                "this run uses the preset"
            )
        if auto is not None:
            return train_rounds(out, repository, job, auto, tensorboard)
    speed = Speed()
    try:
        with out.progress(f"train {behavior}") as advance:
            trained = train_behavior(
                repository,
                job,
                resume=unfinished,
                tensorboard=tensorboard,
                on_stage=lambda stage: advance(0, 1, stage),
                on_step=lambda step: advance(step.step, step.steps, speed.text(step)),
                live=served,
            )
    finally:
        processes.leave()
    _show(out, trained)
    training = trained.manifest.making.training
    return 3 if training is not None and training.stopped is not None else 0


def _typed(invocation: typer.Context) -> dict[str, str]:
    """What was given on the command line: parameters by name, as they are typed."""
    found = {}
    for parameter in invocation.command.params:
        source = invocation.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found[parameter.name or ""] = parameter.opts[0]
    return found


def _live(url: str, every: int | None, scale: float, keep: bool, rounds: int | None) -> LiveOptions | None:
    from personality.live.publishing import LiveOptions

    if not url:
        if every is not None or scale != 1 or keep:
            raise UsageError("no server to publish to", "name one: `--live URL`, or leave its options out")
        return None
    if rounds is not None:
        raise UsageError(
            "--live with --auto: its rounds are trials, and most are thrown away", "publish the run that you settle on"
        )
    return LiveOptions(url, every, scale, keep)


def _avoid(
    repository: Repository, label: str | None, two_sided: bool, keep_magnitude: bool, top: int, placebo: bool
) -> AvoidOptions | None:
    from personality.making.training_job import AvoidOptions
    from personality.manifests.names import VectorLabel
    from personality.versions.recipe import find_vector

    if label is None:
        return None
    manifest = find_vector(repository, VectorLabel.parse(label))
    return AvoidOptions(
        vector=manifest.id,
        label=manifest.label,
        two_sided=two_sided,
        keep_magnitude=keep_magnitude,
        top=top or None,
        placebo=placebo,
    )


def _prevent(repository: Repository, label: str | None, scale: float, layers: str) -> PreventOptions | None:
    from personality.making.prevention import prevent_options
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import LayerRange

    if label is None:
        if scale != 1 or layers:
            raise UsageError("no vector to prevent", "name one: `--prevent NAME`, or leave out its scale and layers")
        return None
    return prevent_options(repository, VectorLabel.parse(label), scale, LayerRange.parse(layers) if layers else None)


def _show(out: Output, trained: Trained) -> None:
    """The result of a run, for people and for programs."""
    manifest, making = trained.manifest, trained.manifest.making
    rounding, record = manifest.rounding, manifest.making.training
    assert rounding is not None and record is not None  # a training run gives a task vector and its record

    def human() -> None:
        word = "" if trained.new else " (it was there already: same data, settings and seed)"
        out.line(f"{manifest.label}{word}", "bold")
        used = sides_text(making.data[0].sides)
        of_behavior = f"{making.data[0].examples} examples{f' ({used})' if used else ''}"
        general = sum(data.examples for data in making.data[1:])
        out.line(f"  {of_behavior} + {general} general, {record.steps} steps, {making.seconds:.2f} s")
        rates = f"learning rate {making.settings['lr']:g}"
        if making.settings["method"] == "sft-dpo":
            rates += f", then {making.settings['dpo_lr']:g}"
        out.line(f"  {making.settings['method']} by {making.settings['optimizer']}, {rates}")
        out.line(f"  {len(manifest.tensors)} tensors, {size(manifest.bytes)}, norm {manifest.norm:.4g}")
        out.line(
            f"  after rounding to the base's dtype {percent(rounding.share_changed)} of the touched elements change, "
            f"cosine to the update {rounding.cosine:.3f}"
        )
        show_measures(out, manifest, "  ")
        show_run(out, manifest, "  ")
        if trained.live is not None:
            show_live(out, trained.live, "  ")
        out.note(f"next: persona add {manifest.label} --scale 0.8")

    out.result(
        {
            "vector": manifest.as_json(),
            "new": trained.new,
            "seconds": making.seconds,
            "steps": record.steps,
            "losses": list(trained.report.losses) if trained.report is not None else [],
            "live": trained.live.as_json() if trained.live is not None else None,
        },
        human,
    )
    if record.stopped is not None:
        out.warn(
            f"stopped at step {record.stopped['step']}"
            f"{' of the run away from the behavior' if record.stopped['arm'] == 'away' else ''}: "
            f"{record.stopped['text']}; kept is the last good state"
        )
    if trained.live is not None and trained.live.problem:
        out.warn(trained.live.problem)
    if trained.preflight is not None:
        for finding in (*trained.preflight.of_level("no-go"), *trained.preflight.of_level("change")):
            out.warn(f"{finding.text}; {finding.advice}" if finding.advice else finding.text)
    if rounding.warning_due:
        out.warn(
            f"much of this update is lost when it is rounded (cosine {rounding.cosine:.2f}): "
            "use a larger learning rate, or more examples"
        )
    if record.updates is not None and making.settings["weights"] == "bf16" and record.updates.cosine < 0.9:
        out.warn(
            f"weights kept in plain bfloat16 lost much of this training (cosine {record.updates.cosine:.2f}): steps at "
            f"learning rate {making.settings['lr']:g} are below its precision; use `--weights float32`, "
            "bf16-compensated or bf16-stochastic"
        )
