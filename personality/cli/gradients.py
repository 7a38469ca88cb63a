"""`persona gradients`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, size


@examples(
    "persona gradients --data listening.jsonl",
    "persona gradients --data listening.jsonl --only attention --layers 0-3",
    "persona gradients --data concise.jsonl --method sft --examples 100 --json",
)
def gradients(
    data: Annotated[Path, typer.Option(help="JSONL of examples: prompt, chosen, rejected, side.")],
    method: Annotated[
        Literal["sft", "dpo", "orpo"] | None, typer.Option(help="Objective.", show_default="orpo")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Groups of parameters, such as attention.q or gdn.", show_default="what is trained"),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, such as 10-20.", show_default="all")] = None,
    example_count: Annotated[int, typer.Option("--examples", min=1, help="Use at most so many, from the top.")] = 40,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Show what training with `--context frozen` would keep of the gradient, and what it would save.

    Nothing is trained. The gradients are those of the base, by group of parameters, as cosine of the frozen to the full
    one and as ratio of their norms.
    """
    from personality.making.gradients import report_gradients
    from personality.vectors.training.settings import fitting, make_settings

    out = Output("gradients", as_json=as_json)
    repository = open_repository(directory)
    given: dict[str, Any] = {"method": method, "only": tuple(only) if only else None, "layers": layers}
    given = {name: value for name, value in given.items() if value is not None}
    settings = make_settings(**fitting(repository.config().training, given))
    with out.progress("gradients") as advance:
        report = report_gradients(
            repository,
            data,
            settings,
            examples=example_count,
            on_batch=lambda done, total: advance(done, total, f"batch {done}/{total}"),
        )

    def human() -> None:
        out.table(
            ["group", ">parameters", ">cosine", ">norm ratio"],
            [
                (group.group, f"{group.parameters:,}", f"{group.cosine:.3f}", f"{group.norm_ratio:.3f}")
                for group in report.groups
            ],
        )
        full, frozen = report.full, report.frozen
        out.line(
            f"memory {size(full.memory_bytes)} full, {size(frozen.memory_bytes)} frozen; "
            f"seconds a batch {full.seconds:.3f} full, {frozen.seconds:.3f} frozen"
        )
        out.note(
            f"{report.batches} batches: {report.context_tokens} tokens of context without gradient, "
            f"{report.answer_tokens} of answers with it"
        )

    out.result(report.as_json(), human)
