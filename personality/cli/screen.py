"""`persona screen`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.making.screening import Screening

_BEGINNING = 60  # letters of an answer in the table


@examples(
    "persona screen listening --data listening.jsonl --vector obey",
    "persona screen listening --data listening.jsonl --vector obey@2 --threshold 0.3 --fail-above 0.1",
    "persona screen warm --data warm.jsonl --vector flattery --approximate --json",
)
def screen(
    behavior: Annotated[str, typer.Argument(help="Name of the behavior that the data is for.")],
    data: Annotated[Path, typer.Option(help="JSONL of examples, as for training.", show_default=False)],
    vector: Annotated[str, typer.Option(help="Steering vector of the trait to look for.", show_default=False)],
    by: Annotated[
        Literal["projection", "likelihood"] | None,
        typer.Option(
            help="By the activations of the answers, or by how much likelier the vector makes them.",
            show_default="what fits the vector's positions",
        ),
    ] = None,
    layers: Annotated[str, typer.Option(help="Layers A-B, both included.", show_default="the vector's own")] = "",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Do not let the base answer, which takes longest.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the base.")] = 64,
    rows: Annotated[int, typer.Option(min=0, help="Rows of the table; 0 for all.")] = 10,
    threshold: Annotated[
        float | None, typer.Option(help="Count the examples with a greater shift.", show_default=False)
    ] = None,
    fail_above: Annotated[
        float | None, typer.Option(help="Exit code 3 when the file's mean shift is greater.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> int:
    """Tell which examples would teach a trait, before anything is trained on them.

    Each example's answer is compared with the base's own answer to the same prompt; the table begins with those that
    pull most toward the trait. The mean over the file says which way the trait goes in training.
    """
    from personality.making.screening import screen as screen_data
    from personality.manifests.names import VectorLabel, check_behavior_name
    from personality.manifests.personality_record import LayerRange
    from personality.versions.recipe import find_steering

    out = Output("screen", as_json=as_json)
    repository = open_repository(directory)
    check_behavior_name(behavior)
    for name, value in (("--threshold", threshold), ("--fail-above", fail_above)):
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{name} {value} is no number to compare with", "give a finite number, such as 0.2")
    manifest = find_steering(repository, VectorLabel.parse(vector))
    with out.progress("screen") as advance:
        found = screen_data(
            repository,
            data,
            manifest,
            by=by,
            layers=LayerRange.parse(layers) if layers else None,
            approximate=approximate,
            max_new_tokens=max_new_tokens,
            on_stage=lambda stage: advance(0, 1, stage),
        )
    failed = fail_above is not None and found.mean.value > fail_above
    above = None if threshold is None else found.above(threshold)
    limits = {
        "behavior": behavior,
        "threshold": threshold,
        "above": None if above is None else [item.where for item in above],
        "fail_above": fail_above,
        "failed": failed,
    }
    out.result({**found.as_json(), **limits}, lambda: _show(out, found, rows, threshold))
    if failed:
        out.warn(
            f"the mean shift of {data.name} toward {found.vector} is {found.mean.value:+.3f}, above {fail_above:g}: "
            f"leave out the worst examples, or train with `--prevent {found.vector}`"
        )
    return 3 if failed else 0


def _show(out: Output, found: Screening, rows: int, threshold: float | None) -> None:
    worst = found.ranked[: rows or None]
    out.table(
        [">shift", ">answer", ">base", "example", "answer begins"],
        [
            (
                f"{item.shift:+.3f}",
                f"{item.answer:+.3f}",
                f"{item.own:+.3f}",
                item.where,
                f"{item.text[:_BEGINNING]}…" if len(item.text) > _BEGINNING else item.text,
            )
            for item in worst
        ],
    )
    if len(worst) < len(found.examples):
        out.line(f"… and {len(found.examples) - len(worst)} more")
    mean = found.mean
    toward = "toward" if mean.value > 0 else "away from"
    sure = "" if mean.shows_change else ", which may be chance"
    out.line(
        f"mean shift {mean.value:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}] over {mean.n} examples: {toward} "
        f"{found.vector}{sure}",
        "bold",
    )
    if threshold is not None:
        out.line(f"{len(found.above(threshold))} of {len(found.examples)} examples have a shift above {threshold:g}")
    unit = (
        "by projection, in units of what the vector adds at scale 1"
        if found.by == "projection"
        else "by likelihood, in nats per token that the vector gains the answer at scale 1"
    )
    out.note(f"{unit}; base: {_own_text(found)}")


def _own_text(found: Screening) -> str:
    if not found.approximate:
        return "the same of its own answer"
    return "the prompt's last token" if found.by == "projection" else "not asked"
