"""`persona method`, and the options by which `init` chooses the method too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output
from personality.manifests.composition_methods import METHODS, NATIVE, method_of
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.manifests.personality_record import Composition

Normalize = Literal["sum", "mean", "weighted"]
MethodOption = Annotated[str, typer.Option(help="How behaviors are composed: see `persona method --list`.")]
DensityOption = Annotated[
    float | None,
    typer.Option(help="Share of each vector that a method keeps, in (0, 1].", show_default="the method's; ties 0.2"),
]
NormalizeOption = Annotated[
    Normalize | None, typer.Option(help="What the sum is divided by (`mean`: TIES only).", show_default="sum")
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Of a method that draws at random.", show_default="0")]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Another setting of the method.", show_default=False),
]


@examples(
    "persona method linear",
    "persona method ties --density 0.2",
    "persona method dare_ties --density 0.3 --seed 1",
    "persona method breadcrumbs --set gamma=0.02",
    "persona method linear --steering orthogonal",
    "persona method --list",
)
def method(
    name: Annotated[str, typer.Argument(help="linear (task arithmetic), ties, or another.", show_default=False)] = "",
    density: DensityOption = None,
    normalize: NormalizeOption = None,
    trim_scope: Annotated[
        Literal["vector", "tensor"] | None,
        typer.Option(help="TIES: one trimming threshold per whole vector or per tensor.", show_default="vector"),
    ] = None,
    lam: Annotated[float | None, typer.Option("--lambda", help="Factor on the result.", show_default="1")] = None,
    seed: SeedOption = None,
    set_: SettingOption = None,
    steering: Annotated[
        Literal["sum", "orthogonal"] | None,
        typer.Option(
            help="Several steering vectors in a layer add up, or are made orthogonal first.", show_default="as it is"
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show every method, its settings and its source.")] = False,
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Choose the method that composes the behaviors in use; docs/composition.md has the formulas."""
    out = Output("method", as_json=as_json)
    if listed:
        _show_methods(out)
        return
    if not name:
        raise UsageError("no method is named", "such as `persona method ties`; `persona method --list` shows them all")
    from personality.versions.changes import compose_by

    repository = open_repository(directory)
    composition = composition_from(
        repository.config().composition,
        name,
        density=density,
        normalize=normalize,
        trim_scope=trim_scope,
        lam=lam,
        seed=seed,
        settings=set_,
        steering=steering,
    )
    show_recorded(out, compose_by(repository, composition, message))


def _show_methods(out: Output) -> None:
    def human() -> None:
        for item in METHODS.values():
            out.line(item.name, "bold")
            out.line(f"  {item.summary} ({item.citation})")
            if item.name == "ties":
                out.line("  density, normalize, trim-scope, lambda: `persona method --help`")
            for parameter in item.parameters:
                default = f"{parameter.default:g}" if isinstance(parameter.default, float) else parameter.default
                shown = str(default).lower()
                out.line(f"  {parameter.name}: {parameter.values}, default {shown}: {parameter.meaning}")
        out.note("formulas, and what a scale means to each: docs/composition.md")

    data = [
        {
            "name": item.name,
            "summary": item.summary,
            "citation": item.citation,
            "random": item.random,
            "most_vectors": item.most,
            "parameters": [
                {"name": each.name, "default": each.default, "values": each.values, "meaning": each.meaning}
                for each in item.parameters
            ],
        }
        for item in METHODS.values()
    ]
    out.result({"methods": data}, human)


def composition_from(
    current: Composition,
    method: str,
    *,
    density: float | None = None,
    normalize: Normalize | None = None,
    trim_scope: Literal["vector", "tensor"] | None = None,
    lam: float | None = None,
    seed: int | None = None,
    settings: list[str] | None = None,
    steering: Literal["sum", "orthogonal"] | None = None,
) -> Composition:
    """The composition that the options ask for; what is not given stays as it is, where the method stays.

    Raises:
        UsageError: for a method that does not exist, settings that it does not have, or values out of range.
    """
    from pydantic import ValidationError

    from personality.manifests.personality_record import Composition
    from personality.manifests.record import explain

    try:
        known = method_of(method)
    except ValueError as error:
        raise UsageError(str(error), "`persona method --list` shows what there is") from error
    given = {"density": density, "normalize": normalize, "trim_scope": trim_scope, "lambda": lam}
    chosen: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    chosen.update(_setting(text) for text in settings or ())
    if method == "linear" and chosen:
        raise UsageError(
            f"linear has no {', '.join(name.replace('_', '-') for name in chosen)}: it only sums scaled vectors",
            "leave that out, or choose `ties`",
        )
    if seed is not None and not known.random:
        raise UsageError(f"`{method}` draws nothing at random: it has no seed", "leave `--seed` out")
    before = current.as_json()
    data: dict[str, object] = {"method": method, "steering": steering or current.steering}
    if method in NATIVE:
        if unknown := [name for name in chosen if name not in given]:
            raise UsageError(
                f"`{method}` has no {', '.join(unknown)}", "it has --density, --normalize, --trim-scope and --lambda"
            )
        data.update({name: before[name] for name in given if name in before})
        data.update(chosen)
    else:
        former = current.parameters if current.method == method else {}
        try:
            data["parameters"] = known.complete({**former, **chosen})
        except ValueError as error:
            listed = known.settings in str(error)
            raise UsageError(
                str(error), "`persona method --list` says what they do" if listed else known.settings
            ) from error
    if seed is not None:
        data["seed"] = seed
    elif current.method == method:
        data["seed"] = current.seed
    try:
        return Composition.model_validate(data)
    except ValidationError as error:
        raise UsageError(
            f"composition: {explain(error)}", "a density lies in (0, 1], lambda is any finite number"
        ) from error


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"`--set {text}` is no setting", "such as `--set gamma=0.02`")
    return name.strip(), value.strip()
