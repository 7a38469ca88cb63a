"""What became of a version's steering vectors in a written checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from personality.baking.route import BakePlan
from personality.manifests.record import Frozen
from personality.vectors.steering.injection import Injection
from personality.vectors.steering.steering_vector import listed


class BuiltSteering(Frozen):
    """Steering vectors of a version in a written checkpoint.

    Attributes:
        uses: such as `candid@1 × 0.5, layer 3`.
        route: how they were baked in; empty when they were not, so that the folder answers by its weights alone.
        cost: of baking, in words; empty when not baked.
        file: in which they are left to the plugin; empty when they are not.
    """

    uses: tuple[str, ...]
    route: str = ""
    cost: str = ""
    file: str = ""

    @property
    def baked(self) -> bool:
        """Whether the folder steers by itself."""
        return bool(self.route)

    def __str__(self) -> str:
        uses = ", ".join(self.uses)
        if self.baked:
            return f"{uses}: baked in by the route `{self.route}` ({self.cost})"
        if self.file:
            return f"{uses}: left to the plugin (`{self.file}`), without which this folder answers by its weights alone"
        return f"{uses}: left out, this folder answers by its weights alone"


def built_steering(injections: Sequence[Injection], plan: BakePlan | None, file: str = "") -> BuiltSteering | None:
    """What a build says of its version's steering; None for a version without.

    Args:
        injections: all of the version's.
        plan: how they are baked; None when they are not.
        file: that the plugin reads; empty when there is none.
    """
    if not injections:
        return None
    uses = []
    for label in sorted({item.label for item in injections}):
        items = [item for item in injections if item.label == label]
        layers = tuple(sorted(item.layer for item in items))
        uses.append(f"{label} × {items[0].scale:g}, layer{'s' * (len(layers) > 1)} {listed(layers)}")
    return BuiltSteering(uses=tuple(uses), route=plan.route if plan else "", cost=plan.cost if plan else "", file=file)
