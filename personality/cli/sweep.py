"""`persona sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.making.sweep import Judged, Sweep
    from personality.making.sweep_cell import Cell
    from personality.manifests.evaluation import Figure
    from personality.vectors.training.step_report import StepReport

_MARKS = {"too small": "·", "right": "✓", "too large": "!", "forgetting": "✗", "unknown": "?"}


@examples(
    "persona sweep listening --data listening.jsonl --general general.jsonl",
    "persona sweep listening --data listening.jsonl --general general.jsonl --counts 20,50 --plot knee.png",
    "persona sweep concise --data concise.jsonl --general general.jsonl --method dpo --rates 1e-7,5e-7 --json",
)
def sweep(
    behavior: Annotated[str, typer.Argument(help="Name of the behavior.")],
    data: Annotated[Path, typer.Option(help="JSONL of examples: prompt, chosen, rejected, side.")],
    general: Annotated[
        Path | None, typer.Option(help="JSONL of general examples, against forgetting.", show_default=False)
    ] = None,
    counts: Annotated[
        str | None,
        typer.Option(help="Numbers of examples, from the top of the data.", show_default="10,20,50,100,200"),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="Peak learning rates.", show_default="1/4, 1/2, 1 and 2 times the usual one"),
    ] = None,
    method: Annotated[
        Literal["sft", "dpo", "orpo", "sft-dpo"] | None, typer.Option(help="Objective.", show_default="orpo")
    ] = None,
    general_ratio: Annotated[
        float | None, typer.Option(help="General examples per example of the behavior.", show_default="0.25")
    ] = None,
    lora: Annotated[int | None, typer.Option(min=1, help="Train adapters of this rank.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples in a batch, general ones included.", show_default="5")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of order and projections.", show_default="0")] = None,
    probe_rows: Annotated[int, typer.Option(min=1, help="Rows per probe.")] = 40,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the knee and forgetting: FILE.png or FILE.svg.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Find the smallest dose that is right: train every number of examples at every learning rate.

    Each cell starts from the base. No vector is stored and no example counts as used; finished cells are kept, so the
    same command goes on after an interruption, and a wider grid reuses them.
    """
    from personality.making.sweep import run_sweep
    from personality.making.sweep_plot import check_plot, plot_sweep
    from personality.making.training_job import TrainingJob
    from personality.making.training_run import check_job
    from personality.vectors.training.settings import fitting, make_settings

    out = Output("sweep", as_json=as_json)
    repository = open_repository(directory)
    given: dict[str, Any] = {
        "method": method,
        "general_ratio": general_ratio,
        "lora_rank": lora,
        "batch_size": batch_size,
        "seed": seed,
    }
    said = {name: value for name, value in given.items() if value is not None}
    job = TrainingJob(
        behavior=behavior,
        data=data.absolute(),
        general=general.absolute() if general is not None else None,
        settings=make_settings(**fitting(repository.config().training, said)),
        probe_rows=probe_rows,
    )
    check_job(job)
    wanted_counts = _numbers("--counts", counts, int) if counts is not None else None
    wanted_rates = _numbers("--rates", rates, float) if rates is not None else None
    if plot is not None:
        check_plot(plot)
    done, total, stage = 0, 1, ""
    with out.progress(f"sweep {behavior}") as advance:

        def on_stage(text: str) -> None:
            nonlocal stage
            stage = text
            advance(done, total, text)

        def on_cell(cells: int, planned: int, _: Cell) -> None:
            nonlocal done, total
            done, total = cells, planned
            advance(done, total, f"{done}/{total} cells")

        def on_step(step: StepReport) -> None:
            advance(done + step.step / step.steps, total, f"{stage}, step {step.step}/{step.steps}")

        found = run_sweep(
            repository,
            job,
            counts=wanted_counts,
            rates=wanted_rates,
            on_stage=on_stage,
            on_cell=on_cell,
            on_step=on_step,
        )
    if plot is not None:
        plot_sweep(found, plot)
    out.result(_as_json(found), lambda: _show(out, found))
    if plot is not None:
        out.note(f"drawn: {plot}")
    if found.knee is not None:
        cell = found.knee.cell
        source = f"--data {data}" + (f" --general {general}" if general is not None else "")
        out.note(f"next: persona train {behavior} {source} --examples {cell.examples} --lr {cell.rate:g}")


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers between commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        word = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{option} takes {word} between commas, not {text!r}", f"such as `{option} 20,50`") from None


def _show(out: Output, found: Sweep) -> None:
    """The grid, the figures of every cell, and the knee."""
    from personality.making.sweep import measured_by

    changes = [change for item in found.cells if item.effects for change in item.effects.wanted]
    out.line(f"{found.behavior}: {measured_by(changes)}, by examples and learning rate", "bold")
    rows = []
    for rate in found.rates:
        row = [_square(found.at(count, rate), found.knee) for count in found.counts]
        rows.append((f"  {rate:g}", *row))
    out.table(["  rate", *(f">{count}" for count in found.counts)], rows)
    base = f"the base: {percent(found.wanted.value)}" if found.wanted is not None else ""
    legend = ", ".join(f"{mark} {verdict}" for verdict, mark in _MARKS.items() if verdict != "unknown")
    out.line(f"  {base}   {legend}, [ ] the knee".rstrip())
    out.line()
    out.table(
        ["  examples", ">rate", ">effect", ">must hold", ">abilities", ">held-out text", "verdict"],
        [("  base", "", _share(found.wanted), _share(found.held), _share(found.ability), "", "")]
        + [
            (
                f"  {item.cell.examples}",
                f"{item.cell.rate:g}",
                _share(item.wanted),
                _share(item.held),
                _share(item.ability),
                f"{item.nll.value:+.3f}" if item.nll is not None else "",
                item.judgment.verdict,
            )
            for item in found.cells
        ],
    )
    out.line()
    if found.knee is None:
        out.line("no dose of this grid is right", "bold")
        for sentence in found.cells[-1].judgment.advice:
            out.line(f"  the largest: {sentence}")
        return
    cell = found.knee.cell
    out.line(f"the knee: {cell.examples} examples at {cell.rate:g}", "bold")
    for sentence in found.knee.judgment.advice:
        out.line(f"  {sentence}")


def _square(item: Judged, knee: Judged | None) -> str:
    text = f"{_share(item.wanted) or '–'} {_MARKS[item.judgment.verdict]}"
    return f"[{text}]" if item is knee else f"{text} "


def _share(figure: Figure | None) -> str:
    return f"{figure.value:.0%}" if figure is not None else ""


def _as_json(found: Sweep) -> dict[str, Any]:
    def figure(value: Figure | None) -> dict[str, Any] | None:
        return value.as_json() if value is not None else None

    return {
        "behavior": found.behavior,
        "method": found.method,
        "base": {"wanted": figure(found.wanted), "held": figure(found.held), "ability": figure(found.ability)},
        "cells": [
            {
                "examples": item.cell.examples,
                "rate": item.cell.rate,
                "steps": item.cell.steps,
                "seconds": item.cell.seconds,
                "stopped": item.cell.stopped,
                "wanted": figure(item.wanted),
                "held": figure(item.held),
                "ability": figure(item.ability),
                "nll rise": figure(item.nll),
                "verdict": item.judgment.verdict,
                "advice": list(item.judgment.advice),
            }
            for item in found.cells
        ],
        "knee": (
            {"examples": found.knee.cell.examples, "rate": found.knee.cell.rate} if found.knee is not None else None
        ),
    }
