"""`persona inside`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output
from personality.manifests.errors import IncompatibleError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality.evaluation.attention_shift import AttentionShift, LayerAttention
    from personality.evaluation.state_shift import LayerState
    from personality.manifests.evaluation import Figure
    from personality.manifests.personality_record import Personality


@examples(
    "persona inside v4 --probe listening.accept",
    "persona inside v4 --probe listening.accept --control concise",
    "persona inside head --probe listening.accept --rows 20 --json",
)
def inside(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")] = "head",
    probe: Annotated[str, typer.Option(help="Whose prompts hold the directions, such as listening.accept.")] = "",
    control: Annotated[
        str, typer.Option(help="Behavior of the version whose shift is the control.", show_default="the next in use")
    ] = "",
    rows: Annotated[int | None, typer.Option(min=4, help="Rows of the probe.", show_default="all")] = None,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Look inside a version while it answers: attention onto the direction, and the state of recurrent layers.

    A rise on the version's own replies alone, or one that the control shows too, says nothing about the behavior.
    """
    from personality.changing_model import ChangingModel
    from personality.evaluation.attention_shift import attention_shift
    from personality.evaluation.state_shift import state_shift
    from personality.evaluation.suite import read_suite

    out = Output("inside", as_json=as_json)
    repository = open_repository(directory)
    history, found = find_version(out, repository, version)
    probes = {item.name: item for item in read_suite(repository, None, rows)}
    if probe not in probes:
        raise UsageError(
            f"there is no probe `{probe}`" if probe else "which prompts hold directions?",
            f"name a probe with `--probe`: {', '.join(sorted(probes))}",
        )
    name, other = _control(found.personality, probe.partition(".")[0], control)
    bench = ChangingModel(repository)
    attention: AttentionShift | None = None
    states: tuple[LayerState, ...] = ()
    asked = probes[probe].rows
    others = [row for item in probes.values() if item.name.startswith("general.") for row in item.rows]
    try:
        attention = attention_shift(bench, found.personality, asked, control=other)
    except IncompatibleError as error:
        out.note(error.message)
    try:
        states = state_shift(bench, found.personality, asked, others if len(others) >= 4 else ())
    except IncompatibleError as error:
        out.note(error.message)

    def human() -> None:
        out.line(f"{history.label(found)}  {found.personality}", "bold")
        out.line(f"  {len(asked)} prompts of {probe}; control: {name or 'none'}")
        if attention is not None:
            out.line()
            out.line("attention from the reply onto the direction (mean over heads, 95% intervals, paired)", "bold")
            _show_attention(out, attention)
        if states:
            out.line()
            out.line("recurrent state after the prompt, beside the base's", "bold")
            _show_states(out, states)

    out.result(
        {
            "version": found.id,
            "probe": probe,
            "rows": len(asked),
            "control": name,
            "attention": _plain(asdict(attention)) if attention is not None else None,
            "states": [_plain(asdict(item)) for item in states],
        },
        human,
    )


def _control(personality: Personality, behavior: str, named: str) -> tuple[str, Personality | None]:
    """A behavior of the version other than the one that is measured, alone; its name, and None where there is none."""
    uses = [use for use in personality.uses if use.behavior != behavior and use.scale != 0]
    if named:
        uses = [use for use in uses if use.behavior == named]
        if not uses:
            raise NotFoundError(
                f"`{named}` is no other behavior of this version",
                f"it uses {', '.join(use.behavior for use in personality.uses) or 'none'}",
            )
    if not uses:
        return "", None
    return str(uses[0]), personality.model_copy(update={"uses": (uses[0],)})


def _show_attention(out: Output, shift: AttentionShift) -> None:
    columns = ["text", ">layer", ">base", ">version", ">change", ">control"]
    table: list[list[str]] = []
    kinds: list[tuple[str, Sequence[LayerAttention], Sequence[LayerAttention]]] = [
        ("the same text", shift.forced, shift.control_forced),
        ("its own replies", shift.own, shift.control_own),
    ]
    for title, layers, controls in kinds:
        for index, item in enumerate(layers):
            table.append(
                [
                    title if index == 0 else "",
                    str(item.layer),
                    f"{item.base.value:.3f}",
                    f"{item.version.value:.3f}",
                    _change(item.change),
                    _change(controls[index].change) if controls else "",
                ]
            )
    out.table(columns, table)


def _show_states(out: Output, states: Sequence[LayerState]) -> None:
    def separation(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    out.table(
        [">layer", ">cosine", ">norm", ">directions told apart: base", ">version"],
        [
            [
                str(item.layer),
                f"{item.cosine.value:.4f}",
                f"{item.norm.value:.3f}×",
                separation(item.separation_base),
                separation(item.separation_version),
            ]
            for item in states
        ],
    )


def _change(figure: Figure) -> str:
    sign = "≈ " if figure.low <= 0 <= figure.high else ""
    return f"{sign}{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def _plain(data: Any) -> Any:
    """JSON data: figures are records of their own."""
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return data.as_json() if hasattr(data, "as_json") else data
