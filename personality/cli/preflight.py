"""`persona preflight`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent, sides_text

if TYPE_CHECKING:
    from personality.preflight.findings import Finding, Preflight

_PROBLEMS = 3
_STYLES = {"go": "bold green", "go with changes": "bold yellow", "no-go": "bold red"}
# Name of a figure, what to call it, and whether it is a share.
_FIGURES = (
    ("chosen", "chosen, nats/token", False),
    ("rejected", "rejected, nats/token", False),
    ("own", "the base's own replies, nats/token", False),
    ("chosen_gap", "chosen below own", False),
    ("rejected_gap", "rejected below own", False),
    ("margin", "margin of chosen over rejected", False),
    ("margin_accept", "  where it accepts", False),
    ("margin_push_back", "  where it pushes back", False),
    ("prefers_rejected", "base prefers rejected", True),
    ("prefers_rejected_accept", "  where it accepts", True),
    ("prefers_rejected_push_back", "  where it pushes back", True),
    ("length_ratio", "length, chosen to rejected", False),
)


@examples(
    "persona preflight listening --data listening.jsonl --general general.jsonl",
    "persona preflight --data pairs.jsonl --method dpo --lr 5e-7",
    "persona preflight candid --data candid.jsonl --examples 50 --json",
)
def preflight(
    data: Annotated[Path, typer.Option(help="JSONL of examples: prompt, chosen, rejected, side.")],
    behavior: Annotated[
        str, typer.Argument(help="Whose probes the data must not repeat; none for all.", show_default=False)
    ] = "",
    general: Annotated[
        Path | None, typer.Option(help="JSONL of general examples, against forgetting.", show_default=False)
    ] = None,
    method: Annotated[
        Literal["sft", "dpo", "orpo", "sft-dpo"] | None, typer.Option(help="Objective.", show_default="orpo")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="by model size")] = None,
    dpo_lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of sft-dpo's second phase.", show_default="by model size")
    ] = None,
    lora: Annotated[
        int | None, typer.Option(help="Rank of adapters to train instead of the weights.", show_default="none")
    ] = None,
    general_ratio: Annotated[
        float | None, typer.Option(help="General examples per example of the behavior.", show_default="0.25")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest dialogue, in tokens.", show_default="2048")] = None,
    example_count: Annotated[
        int | None, typer.Option("--examples", min=1, help="Look only at so many, from the top.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the base's own replies.")] = 0,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Look at data, settings and base before training; nothing is trained. Exits with 3 on no-go.

    Says go, go with changes (each named), or no-go with what to do instead. `persona train` does the same first.
    """
    from personality.preflight.diagnosis import diagnose
    from personality.vectors.training.settings import fitting, make_settings

    out = Output("preflight", as_json=as_json)
    repository = open_repository(directory)
    given: dict[str, Any] = {
        "method": method,
        "lr": lr,
        "dpo_lr": dpo_lr,
        "lora_rank": lora,
        "general_ratio": general_ratio,
        "max_length": max_length,
    }
    said = {name: value for name, value in given.items() if value is not None}
    settings = make_settings(**fitting(repository.config().training, said))
    with out.progress("preflight") as advance:
        found = diagnose(
            repository,
            data,
            general,
            settings,
            behavior=behavior or None,
            examples=example_count,
            seed=seed,
            on_stage=lambda stage: advance(0, 1, stage),
        )

    def human() -> None:
        show_preflight(out, found)

    out.result({"preflight": found.as_json(), "settings": settings.model_dump(mode="json")}, human)
    if found.verdict == "no-go":
        raise typer.Exit(_PROBLEMS)


def show_preflight(out: Output, found: Preflight) -> None:
    """Print verdict, findings and figures for people."""
    figures = found.figures
    sides = sides_text(figures["sides"])
    out.line(found.verdict, _STYLES[found.verdict])
    out.line(f"  {figures['examples']} examples{f' ({sides})' if sides else ''}, {figures['general']} general")
    rows = [(f"  {title}", *_cells(figures[name], share)) for name, title, share in _FIGURES if name in figures]
    out.table(["  on the base", ">value", ">95% interval", ">n"], rows)
    for finding in found.findings:
        show_finding(out, finding)


def show_finding(out: Output, finding: Finding) -> None:
    """Print one finding in two lines: what was found, and what mends it."""
    style = {"no-go": "red", "change": "yellow"}.get(finding.level)
    out.line(f"{finding.level}: {finding.name}: {finding.text}", style)
    if finding.advice:
        out.line(f"  → {finding.advice}")


def _cells(figure: dict[str, Any], share: bool) -> tuple[str, str, str]:
    def text(value: float) -> str:
        return percent(value) if share else f"{value:.2f}"

    return text(figure["value"]), f"{text(figure['low'])} to {text(figure['high'])}", str(figure["n"])
