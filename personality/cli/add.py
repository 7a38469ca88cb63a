"""`persona add`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personality.cli.evaluation_lines import FAILED, show_gate
from personality.cli.options import DirectoryOption, JsonOption, MessageOption, examples, open_repository, show_recorded
from personality.cli.output import Output

if TYPE_CHECKING:
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import LayerRange, Use
    from personality.manifests.repository import Repository


@examples(
    "persona add listening --scale 0.8",
    "persona add listening@2 --scale 0.5 --layers 10-20",
    'persona add flattery --scale -1 -m "take the flattery out"',
    "persona add listening --gate gate.toml",
)
def add(
    vector: Annotated[str, typer.Argument(help="NAME (its newest vector) or NAME@N.")],
    scale: Annotated[
        float | None,
        typer.Option(
            help="Factor on the vector; negative takes the behavior away.",
            show_default="1; a steering vector's proven scale",
        ),
    ] = None,
    layers: Annotated[str, typer.Option(help="Only in layers A-B, both included.", show_default="all")] = "",
    density: Annotated[
        float | None, typer.Option(help="Share of this vector that the method keeps.", show_default="the method's")
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Measure first: record nothing and exit with 3 when a bound fails.", show_default=False
        ),
    ] = None,
    message: MessageOption = "",
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Put a behavior's vector into use at a scale, and record a version. It replaces another one of that behavior."""
    from personality.composition.opening import steering_of
    from personality.composition.steering_diff import interference
    from personality.manifests.names import VectorLabel
    from personality.manifests.personality_record import LayerRange
    from personality.versions.changes import add as add_use

    out = Output("add", as_json=as_json)
    repository = open_repository(directory)
    where = LayerRange.parse(layers) if layers else None
    label = VectorLabel.parse(vector)
    if gate is not None:
        scale = _pass_gate(out, repository, gate, label, scale, where, density)
    composition = repository.config().composition
    if density is not None and not composition.drops:
        out.warn(f"`{composition.method}` has no density: it takes effect with `persona method ties`")
    recorded = add_use(repository, label, scale, layers=where, density=density, message=message)
    related = interference(steering_of(repository, recorded.version.personality))
    show_recorded(
        out, recorded, [item for item in related if label.behavior in map(_behavior, (item.first, item.second))]
    )
    _remarks(out, repository, recorded.version.personality.use_of(label.behavior))


def _pass_gate(
    out: Output,
    repository: Repository,
    gate: Path,
    label: VectorLabel,
    scale: float | None,
    layers: LayerRange | None,
    density: float | None,
) -> float:
    """Measure what would be recorded; returns its scale.

    Raises:
        typer.Exit: with 3, when it fails; the result has been given then.
    """
    from personality.evaluation.gate import check_personality, read_gate
    from personality.versions.recipe import find_vector, use_vector, working_personality

    wanted = read_gate(gate)
    if scale is None:
        steering = find_vector(repository, label).steering
        scale = steering.proof.scale if steering is not None and steering.proof is not None else 1.0
    target = working_personality(repository).with_use(use_vector(repository, label, scale, layers, density))
    checks = check_personality(repository, wanted, target)
    if all(check.kept for check in checks):
        out.note(f"{len(checks)} bounds of {gate} are kept")
        return scale
    data = {"recorded": False, "personality": str(target), "gate": [check.as_json() for check in checks]}

    def human() -> None:
        out.line(f"not recorded: {target} fails {gate}", "bold")
        show_gate(out, checks)

    out.result(data, human)
    raise typer.Exit(FAILED)


_REACHED = 0.9  # nats
_ABOVE = 1.05  # times the scale that was tested


def _behavior(label: str) -> str:
    from personality.manifests.names import VectorLabel

    return VectorLabel.parse(label).behavior


def _remarks(out: Output, repository: Repository, use: Use | None) -> None:
    """What a user should know of the steering vector that was just put into use."""
    from personality.versions.recipe import manifest_of

    steering = manifest_of(repository, use).steering if use is not None else None
    if use is None or steering is None:
        return
    if not steering.proven:
        reasons = "; ".join(steering.proof.reasons) if steering.proof else "nothing was measured when it was made"
        out.warn(f"`{use.label}` is unproven: {reasons}")
    tested = steering.proof.scale if steering.proof is not None else None
    reach = steering.calibration.coherent_to if steering.calibration is not None else None
    if use.layers is None and reach is not None and abs(use.scale) > reach:
        out.warn(f"at scale {use.scale:g} text falls apart: `{use.label}` holds together up to {reach:g}")
    elif tested is not None and (use.scale < 0 or use.scale > tested * _ABOVE):
        out.warn(f"`{use.label}` was tested at scale {tested:g}, not at {use.scale:g}: measure it (`persona eval`)")
    if steering.calibration is None:
        out.note(f"the strength of `{use.label}` is its file's own: scale 1 is not the same as for other vectors")
    elif use.layers is not None and tuple(range(use.layers.first, use.layers.last + 1)) != steering.layers:
        out.note(f"scale 1 was measured for its own layers; in layers {use.layers} its strength is an estimate")
    for item in steering.figures:
        acts = item.layer in steering.layers if use.layers is None else item.layer in use.layers
        if acts and item.reached is not None and item.reached < _REACHED:
            out.warn(
                f"in layer {item.layer} scale 1 moves predictions by {item.reached:.2g} nats only: more has no effect"
            )
