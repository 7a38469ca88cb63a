"""`persona method`, and the options by which `init` chooses the method too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.manifests.personality_record import Composition

Method = Literal["linear", "ties"]
Normalize = Literal["sum", "mean", "weighted"]
MethodOption = Annotated[Method, typer.Option(help="How behaviors are composed.")]
DensityOption = Annotated[
    float | None, typer.Option(help="TIES: share of each vector that is kept, in (0, 1].", show_default="0.2")
]
NormalizeOption = Annotated[
    Normalize | None, typer.Option(help="TIES: what the sum is divided by.", show_default="sum")
]


@examples(
    "persona method linear",
    "persona method ties --density 0.2",
    "persona method linear --steering orthogonal",
)
def method(
    name: Annotated[Method, typer.Argument(help="linear (task arithmetic) or ties.")],
    density: DensityOption = None,
    normalize: NormalizeOption = None,
    trim_scope: Annotated[
        Literal["vector", "tensor"] | None,
        typer.Option(help="TIES: one trimming threshold per whole vector or per tensor.", show_default="vector"),
    ] = None,
    lam: Annotated[float | None, typer.Option("--lambda", help="TIES: factor on the result.", show_default="1")] = None,
    steering: Annotated[
        Literal["sum", "orthogonal"] | None,
        typer.Option(
            help="Several steering vectors in a layer add up, or are made orthogonal first.", show_default="as it is"
        ),
    ] = None,
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Choose the method that composes the behaviors in use; docs/composition.md has the formulas."""
    from personality.versions.changes import compose_by

    out = Output("method", as_json=as_json)
    repository = open_repository(directory)
    composition = composition_from(
        repository.config().composition,
        name,
        density=density,
        normalize=normalize,
        trim_scope=trim_scope,
        lam=lam,
        steering=steering,
    )
    show_recorded(out, compose_by(repository, composition, message))


def composition_from(
    current: Composition,
    method: Method,
    *,
    density: float | None = None,
    normalize: Normalize | None = None,
    trim_scope: Literal["vector", "tensor"] | None = None,
    lam: float | None = None,
    steering: Literal["sum", "orthogonal"] | None = None,
) -> Composition:
    """The composition that the options ask for; what is not given stays as it is.

    Raises:
        UsageError: for settings that the method does not have, or values out of range.
    """
    from pydantic import ValidationError

    from personality.manifests.personality_record import Composition
    from personality.manifests.record import explain

    given = {"density": density, "normalize": normalize, "trim_scope": trim_scope, "lambda": lam}
    chosen = {name: value for name, value in given.items() if value is not None}
    if method == "linear" and chosen:
        raise UsageError(
            f"linear has no {', '.join(name.replace('_', '-') for name in chosen)}: it only sums scaled vectors",
            "leave that out, or choose `ties`",
        )
    try:
        every = chosen if steering is None else {**chosen, "steering": steering}
        return Composition.model_validate({**current.as_json(), "method": method, **every})
    except ValidationError as error:
        raise UsageError(
            f"composition: {explain(error)}", "a density lies in (0, 1], lambda is any finite number"
        ) from error
