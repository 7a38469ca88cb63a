"""What becomes of a version's steering when it is exported: baked into the weights, left to the plugin, or left out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from personality.baking.bake import bake, check_proven
from personality.baking.baked_weights import BakedWeights
from personality.builds.built_steering import BuiltSteering, built_steering
from personality.composition.composer import Composer
from personality.manifests.errors import IncompatibleError, UsageError
from personality.manifests.repository import Repository
from personality.manifests.version import Version
from personality.model import read_config
from personality.serving.steering_table import STEERING_FILE, SteeringTable, table_of

Choice = Literal["bake", "plugin", "leave-out"]


@dataclass(frozen=True)
class SteeringPart:
    """How an export carries what steers a version.

    Attributes:
        summary: in words; None when nothing steers it.
        baked: the weights with it inside; None when it is not baked.
        table: what the plugin is to add; None when nothing is left to it.
        notes: what a user should know before serving it.
    """

    summary: BuiltSteering | None = None
    baked: BakedWeights | None = None
    table: SteeringTable | None = None
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> bool:
        """Whether the folder has nothing of it."""
        return self.summary is not None and self.baked is None and self.table is None

    @property
    def serve_with(self) -> tuple[str, ...]:
        """Arguments of `vllm serve` that the folder needs."""
        return self.baked.plan.serve_with if self.baked else ()


def steering_part(
    repository: Repository,
    version: Version,
    composer: Composer,
    target: str,
    choice: Choice,
    *,
    route: str | None = None,
    bake_unproven: bool = False,
) -> SteeringPart:
    """Decide how to carry a version's steering, before anything is written.

    Args:
        repository: where.
        version: that is exported.
        composer: of the version.
        target: `hf` or `vllm`.
        choice: what the user wants.
        route: of baking, by name; None for the first that fits.
        bake_unproven: bake what nobody proved.

    Raises:
        UsageError: for options that do not go together.
        IncompatibleError: when it cannot be carried so.
    """
    if route is not None and choice != "bake":
        raise UsageError(
            f"`--route {route}` is a way of baking, and `--steering {choice}` bakes nothing", "leave one of them out"
        )
    if choice == "plugin" and target != "vllm":
        raise UsageError(
            f"`--steering plugin` leaves steering to a vLLM with the plugin, and the export is for `{target}`",
            "export with `--to vllm`",
        )
    if not composer.steering:
        if route is not None:
            raise UsageError(f"{version.label} has no steering vectors to bake", "leave `--route` out")
        return SteeringPart()
    if choice == "leave-out":
        return SteeringPart(built_steering(composer.steering, None))
    if choice == "plugin":
        return _left_to_plugin(version, composer)
    try:
        baked = bake(composer, composer.steering, composer.layer_dtype, route)
        if not bake_unproven:
            check_proven(repository, version.personality)
        _check_read_by(baked, target)
    except IncompatibleError as error:
        raise IncompatibleError(error.message, _other_ways(version, composer, target, error.hint)) from error
    plan = baked.plan
    notes = (f"route `{plan.route}`: {plan.reason}",) if plan.reason else ()
    return SteeringPart(built_steering(composer.steering, plan), baked, None, notes + plan.notes)


def _check_read_by(baked: BakedWeights, target: str) -> None:
    plan = baked.plan
    if target in plan.dropped_by:
        raise IncompatibleError(
            f"{target} would leave the baked vectors out without a word: its class for this architecture has no biases "
            f"where the route `{plan.route}` puts them",
            "export with `--to hf`, train the behavior into the weights (`persona promote`), or `--without-steering`",
        )


def _left_to_plugin(version: Version, composer: Composer) -> SteeringPart:
    table = plugin_table(version, composer)
    summary = built_steering(composer.steering, None, STEERING_FILE)
    return SteeringPart(summary, None, table)


def plugin_table(version: Version, composer: Composer) -> SteeringTable:
    """What the plugin is to add for a version: to the last bit what hooks add.

    Raises:
        IncompatibleError: when it is no addition.
    """
    text = read_config(composer.folder).get_text_config()
    kinds = sorted({item.positions for item in composer.steering})
    # Hooks round what acts on the same tokens together, and apart from what acts on others.
    tables = [
        table_of(
            [item for item in composer.steering if item.positions == kind],
            int(text.num_hidden_layers),
            int(text.hidden_size),
            composer.layer_dtype,
        )
        for kind in kinds
    ]
    total = sum((table.table for table in tables[1:]), tables[0].table)
    return dataclasses.replace(tables[0], table=total, version=version.id, label=version.label)


def _other_ways(version: Version, composer: Composer, target: str, hint: str) -> str:
    """A hint with the plugin in it, where the plugin can do it."""
    try:
        plugin_table(version, composer)
    except IncompatibleError:
        return hint
    to = "" if target == "vllm" else "--to vllm "
    return f"`{to}--steering plugin` leaves it to a server with the plugin; {hint}"
