"""`persona check`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from personality.cli.method import DensityOption, NormalizeOption, SeedOption, SettingOption, composition_from
from personality.cli.options import DirectoryOption, JsonOption, examples, open_repository
from personality.cli.output import Output, percent
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.forecast.advice import Advice, Caution
    from personality.forecast.forecast import Forecast
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import Personality
    from personality.manifests.repository import Repository

_WARNED = 3
_SIGNS = ("×", "=")  # between a vector and its scale


@examples(
    "persona check",
    "persona check v4 --method ties --density 0.1",
    "persona check --with warm@2×0.6 --with candid --scale 0.8 --exit-code",
)
def check(
    version: Annotated[
        str, typer.Argument(help="v4, a tag, head.", show_default="what the files say, saved or not")
    ] = "",
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME@N×SCALE", help="Also this vector; `=` for × will do.", show_default=False),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Of every --with that names none.", show_default="as for `add`")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Composed in another way.", show_default="as it is")] = None,
    density: DensityOption = None,
    normalize: NormalizeOption = None,
    seed: SeedOption = None,
    set_: SettingOption = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Do not run the base to hold steering against task vectors.")
    ] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 when there is a warning.")] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> int:
    """Forecast how a recipe's vectors get in each other's way, before anything is built or measured."""
    from personality.forecast.advice import advise, cautions, cautions_json
    from personality.forecast.forecast import Forecaster

    out = Output("check", as_json=as_json)
    repository = open_repository(directory)
    label, personality = _recipe(repository, version, with_ or [], scale)
    if method or density is not None or normalize or seed is not None or set_:
        current = personality.composition
        changed = composition_from(
            current, method or current.method, density=density, normalize=normalize, seed=seed, settings=set_
        )
        personality = personality.model_copy(update={"composition": changed})
    with out.progress("check") as advance:
        forecaster = Forecaster(repository, on_tensor=advance)
        found = forecaster.forecast(personality, run=not weights_only)
        advice = advise(found, lambda other: forecaster.forecast(other, run=False))
    warned = cautions(found)
    data = {
        "label": label,
        **found.as_json(),
        "cautions": cautions_json(warned),
        "advice": advice.as_json() if advice else None,
    }
    out.result(data, lambda: _show(out, label, found, warned, advice))
    return _WARNED if exit_code and warned else 0


def _recipe(repository: Repository, version: str, added: list[str], scale: float | None) -> tuple[str, Personality]:
    """What is to be checked, and its name."""
    from personality.versions.history import History
    from personality.versions.recipe import find_vector, use_vector, usual_scale, working_personality

    if scale is not None and not math.isfinite(scale):
        raise UsageError(f"--scale {scale} is no scale", "a scale is any finite number, such as 0.8")
    if scale is not None and not added:
        raise UsageError("--scale without --with", "name the vector: `persona check --with listening --scale 0.8`")
    if version:
        history = History(repository)
        found = history.find(version)
        label, personality = history.label(found), found.personality
    else:
        label, personality = "the files", working_personality(repository)
    seen = set()
    for text in added:
        vector, own = _split(text)
        if vector.behavior in seen:
            raise UsageError(f"`{vector.behavior}` is named twice", "a personality uses one vector of each behavior")
        seen.add(vector.behavior)
        chosen = own if own is not None else scale
        use = use_vector(repository, vector, usual_scale(find_vector(repository, vector)) if chosen is None else chosen)
        personality = personality.with_use(use)
    return f"{label} with {', '.join(added)}" if added else label, personality


def _split(text: str) -> tuple[VectorLabel, float | None]:
    """`warm@2×0.6` as a label and a scale; None where it names none."""
    from personality.manifests.names import VectorLabel

    sign = next((sign for sign in _SIGNS if sign in text), "")
    name, _, number = text.partition(sign) if sign else (text, "", "")
    if not sign:
        return VectorLabel.parse(name.strip()), None
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UsageError(f"`{text}`: `{number}` is no scale", "write NAME, NAME@N, or with a scale `warm@2×0.6`")
    return VectorLabel.parse(name.strip()), scale


def _show(out: Output, label: str, found: Forecast, warned: list[Caution], advice: Advice | None) -> None:
    out.line(f"{label}  {found.personality}", "bold")
    out.line(f"  {found.personality.composition}")
    if found.uses:
        out.line()
        out.table(
            ["vector", ">scale", ">elements that survive", ">of ‖τ‖²", ">kept", ">acts as"],
            [
                (
                    use.label,
                    f"{use.scale:g}",
                    percent(use.surviving),
                    f"{use.surviving_norm:.0%}",
                    f"{use.kept:.0%}",
                    f"{use.effective:.2f}",
                )
                for use in found.uses
            ],
        )
        out.line(f"the sum is {found.strain:.2f}× the longest vector at scale 1")
    if found.pairs:
        out.line()
        out.table(["pair", "", ">cosine", ">overlap", ">opposite signs", ">lost", "fight in layers"], _pair_rows(found))
    if found.against or found.directions:
        out.line()
        out.table(["steering", "against", ">layer", ">cosine"], _steering_rows(found))
    if found.unread:
        out.note(f"steering was not held against the task vectors: {found.unread}")
    out.line()
    if found.worst is not None:
        out.line(f"likely to be hit worst: {found.worst.label}, which acts as at {found.worst.effective:.2f}", "bold")
    for caution in warned:  # part of the result, not a remark on it
        out.line(f"warning: {caution.text}")
    if not warned:
        out.line("nothing to warn of")
    if advice is not None:
        out.line(f"advice: {advice.text}")
    if found.uses:
        out.note(
            f"survive: trimming at density {found.density:g} and the election of signs"
            f"{'' if found.personality.composition.method == 'ties' else ', if it were `ties`'}; "
            "kept: of the vector's own direction in the sum"
        )


def _pair_rows(found: Forecast) -> list[tuple[str, ...]]:
    from personality.vectors.steering.steering_vector import listed

    return [
        (
            pair.first,
            pair.second,
            "–" if pair.whole.cosine is None else f"{pair.whole.cosine:+.3f}",
            f"{pair.whole.overlap:.0%}",
            "–" if pair.whole.opposed is None else f"{pair.whole.opposed:.0%}",
            f"{pair.whole.lost:.0%}",
            listed(tuple(pair.fights)) or "–",
        )
        for pair in found.pairs
    ]


def _steering_rows(found: Forecast) -> list[tuple[str, ...]]:
    directions = [(item.first, item.second, str(item.layer), f"{item.cosine:+.2f}") for item in found.directions]
    against = [(item.steering, item.task, str(item.layer), f"{item.cosine:+.2f}") for item in found.against]
    return [*directions, *against]
