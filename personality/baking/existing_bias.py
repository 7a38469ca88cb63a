"""Route `existing-bias`: architectures whose MLP's output projection has a bias in the checkpoint already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from personality.baking.architecture import Architecture
from personality.baking.mlp_bias import MODEL_TYPES as MLP_BIAS_TYPES
from personality.baking.route import ROUNDED, BakePlan, Change
from personality.baking.weights import Weights

OUTPUT_BIAS = {
    "bloom": "mlp.dense_4h_to_h.bias",
    "codegen": "mlp.fc_out.bias",
    "gpt2": "mlp.c_proj.bias",
    "gpt_bigcode": "mlp.c_proj.bias",
    "gpt_neo": "mlp.c_proj.bias",
    "gpt_neox": "mlp.dense_4h_to_h.bias",
    "gptj": "mlp.fc_out.bias",
    "phi": "mlp.fc2.bias",
    "starcoder2": "mlp.c_proj.bias",
    **dict.fromkeys(MLP_BIAS_TYPES, "mlp.down_proj.bias"),
}
"""The output projection's bias by model type. Where attention and MLP run side by side, a layer still adds both."""


class ExistingBias:
    """The vector is added to a bias that is there: no key, shape or setting changes."""

    name = "existing-bias"
    model_types: Collection[str] = OUTPUT_BIAS.keys()
    why = "its MLP's output projection has a bias already"

    def hindrance(self, architecture: Architecture) -> str:
        """See `Route.hindrance`."""
        suffix = OUTPUT_BIAS[architecture.model_type]
        if not architecture.named(suffix):
            return f"it has no `…{suffix}`"
        if skips_bias(architecture):
            tp = architecture.text["pretraining_tp"]
            return f"with `slow_but_exact: true` and `pretraining_tp: {tp}` it leaves the output projection's bias out"
        return ""

    def plan(self, architecture: Architecture, additions: Mapping[int, Tensor]) -> BakePlan:
        """See `Route.plan`."""
        factor = architecture.output_factor
        changes = {}
        for layer, vector in additions.items():
            name = architecture.one(OUTPUT_BIAS[architecture.model_type], layer)
            changes[name] = Change(architecture.specs[name], added_to(name, vector.double() / factor))
        return BakePlan(
            route=self.name,
            config=architecture.config,
            changes=changes,
            cost=f"nothing: {len(changes)} bias tensor{'s' * (len(changes) != 1)} changed",
            tolerance=ROUNDED,  # bias and vector are rounded together
        )


def skips_bias(architecture: Architecture) -> bool:
    """Whether the model has the bias and does not add it: BLOOM, when it sums slices of the projection one by one."""
    text = architecture.text
    return (
        architecture.model_type == "bloom"
        and int(text.get("pretraining_tp") or 1) > 1
        and bool(text.get("slow_but_exact", False))
    )


def added_to(name: str, vector: Tensor) -> Callable[[Weights], Tensor]:
    """Makes the named tensor (…, d) plus a vector (d,), in the tensor's dtype."""

    def make(weights: Weights) -> Tensor:
        tensor = weights.tensor(name)
        return (tensor.double() + vector).to(tensor.dtype)

    return make
