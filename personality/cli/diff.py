"""`persona diff`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output
from personality.cli.tables import LEGEND, effect_rows, layer_rows, steering_rows

if TYPE_CHECKING:
    from personality.evaluation.evaluate import Effect

_DIFFERENT = 3


@examples(
    "persona diff v3 v4",
    "persona diff v3 v4 --effect",
    "persona diff stable head --exit-code --json",
)
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="The older version.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The newer version.")] = "head",
    effect: Annotated[bool, typer.Option("--effect", help="Also measure what the change does, by the probes.")] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of each probe for --effect.", show_default="all")
    ] = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 when the versions differ.")] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Show what changed from A to B: the recipe, the weights layer by layer, and with --effect the behavior."""
    from personality.composition.opening import composer_of
    from personality.composition.steering_diff import steering_diff
    from personality.composition.weight_diff import weight_diff
    from personality.evaluation.evaluate import compare_effects, evaluate
    from personality.versions.history import History
    from personality.versions.recipe import compare_recipes

    out = Output("diff", as_json=as_json)
    repository = open_repository(directory)
    history = History(repository)
    old, new = history.find(before), find_version(out, repository, after)[1]
    recipe = compare_recipes(old.personality, new.personality)
    composers = [composer_of(repository, version.personality) for version in (old, new)] if recipe else []
    layers = weight_diff(*composers) if composers else []
    steering = steering_diff(*(composer.steering for composer in composers)) if composers else []
    effects: list[Effect] = []
    if effect:
        with out.progress("measure") as advance:
            evaluations = [evaluate(repository, version, rows=rows, on_probe=advance) for version in (old, new)]
        effects = compare_effects(*evaluations)

    def human() -> None:
        out.line(f"{history.label(old)} → {history.label(new)}", "bold")
        for change in recipe:
            out.line(f"  {change}")
        if not recipe:
            out.line("  the same recipe")
        if layers:
            out.line()
            out.table(["layer", ">norm A", ">norm B", ">norm of change", ">cosine", ">sign flips"], layer_rows(layers))
        if steering:
            out.line()
            out.table(
                ["steering after layer", "at", ">norm A", ">norm B", ">norm of change", ">cosine"],
                steering_rows(steering),
            )
        if effect:
            out.line()
            out.table(
                ["probe", ">A", ">B", ">change (95% interval)", ">P A", ">P B", ">change of P"],
                effect_rows(effects),
            )
            out.line(LEGEND)

    data: dict[str, Any] = {
        "before": old.id,
        "after": new.id,
        "recipe": [change.as_json() for change in recipe],
        "layers": [asdict(layer) for layer in layers],
        "steering": [asdict(item) for item in steering],
    }
    if effect:
        data["effects"] = [effect_json(item) for item in effects]
    out.result(data, human)
    if exit_code and recipe:
        raise typer.Exit(_DIFFERENT)


def effect_json(effect: Effect) -> dict[str, Any]:
    """An effect as JSON data."""
    figures = {
        "before": effect.before,
        "after": effect.after,
        "change": effect.change,
        "probability_before": effect.probability_before,
        "probability_after": effect.probability_after,
        "probability_change": effect.probability_change,
    }
    return {
        "probe": effect.probe,
        "shown": effect.shown,
        **{name: figure.as_json() if figure else None for name, figure in figures.items()},
    }
