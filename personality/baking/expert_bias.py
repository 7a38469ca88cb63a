"""Route `expert-bias`: mixtures of experts whose experts have an output bias and whose routing weights sum to 1."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from personality.baking.architecture import Architecture
from personality.baking.existing_bias import added_to
from personality.baking.route import ROUNDED, BakePlan, Change

_BIAS = "mlp.experts.down_proj_bias"


class ExpertBias:
    """GPT-OSS: the vector is added to the output bias of every expert of the layer.

    The router takes a softmax over the chosen experts only, so the weights w_e of those that answer sum to 1, and
    Σ w_e (y_e + v) = Σ w_e y_e + v whichever they are. Keys, shapes and settings stay.
    """

    name = "expert-bias"
    model_types: Collection[str] = ("gpt_oss",)
    why = "every expert has an output bias, and the weights of those that answer sum to 1"

    def hindrance(self, architecture: Architecture) -> str:
        """See `Route.hindrance`."""
        return "" if architecture.named(_BIAS) else f"it has no `…{_BIAS}`"

    def plan(self, architecture: Architecture, additions: Mapping[int, Tensor]) -> BakePlan:
        """See `Route.plan`."""
        changes = {}
        for layer, vector in additions.items():
            name = architecture.one(_BIAS, layer)
            changes[name] = Change(architecture.specs[name], added_to(name, vector.double()))
        return BakePlan(
            route=self.name,
            config=architecture.config,
            changes=changes,
            cost=f"nothing: the bias of every expert in {len(changes)} layer{'s' * (len(changes) != 1)} changed",
            tolerance=ROUNDED,
        )
