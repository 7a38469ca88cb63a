"""How a vector is to be kept: the options of `import` and `encode`, and what both say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from personality.cli.output import Output
from personality.manifests.errors import UsageError

if TYPE_CHECKING:
    from personality.manifests.manifest import Manifest, Residual
    from personality.vectors.encoding import Encoding

EncodingName = Literal["delta", "exact", "sparse", "low-rank"]
EncodingOption = Annotated[
    EncodingName | None,
    typer.Option(
        help="How to keep a checkpoint's difference: dense, its exact bits, trimmed, or as factors. Default: delta.",
        show_default=False,
    ),
]
DensityOption = Annotated[
    float | None,
    typer.Option(help="Of sparse: share of the elements to keep. Default: 0.2.", show_default=False),
]
RankOption = Annotated[
    int | None, typer.Option(help="Of low-rank: columns of the factors, at most.", show_default=False)
]
_DENSITY = 0.2
_SHOWN = 3


def chosen_encoding(
    name: EncodingName | None,
    density: float | None,
    rank: int | None,
    trim_scope: Literal["vector", "tensor"] = "vector",
) -> Encoding | None:
    """The encoding that the options ask for; None when they ask for none.

    Raises:
        UsageError: for options that do not go together.
    """
    from personality.vectors.encoding import Encoding

    if name is None:
        if density is not None or rank is not None:
            raise UsageError(
                "--density and --rank belong to an encoding", "`--encoding sparse` or `--encoding low-rank`"
            )
        return None
    if name == "sparse" and density is None:
        density = _DENSITY
    return Encoding(name=name, density=density, trim_scope=trim_scope, rank=rank)


def show_residual(out: Output, manifest: Manifest, indent: str) -> None:
    """Say what an encoding lost; nothing where nobody looked."""
    if manifest.residual is not None:
        out.line(f"{indent}residual {residual_text(manifest.residual)}")


def residual_text(residual: Residual) -> str:
    """In words: the whole, and the tensors that lost most."""
    if not residual.tensors:
        return "0: every element of the difference is as it was"
    most = sorted(residual.tensors, key=lambda name: -residual.tensors[name])
    shown = ", ".join(f"{name} {residual.tensors[name]:.3g}" for name in most[:_SHOWN])
    more = f", and {len(most) - _SHOWN} more" if len(most) > _SHOWN else ""
    return f"{residual.whole:.3g} of the norm; most in {shown}{more}"
