"""Route `mlp-bias`: architectures whose configuration can give their MLP's projections biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from personality.baking.architecture import Architecture
from personality.baking.route import ROUNDED, BakePlan, Change
from personality.baking.weights import Weights
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.dtypes import TORCH_DTYPES

MODEL_TYPES = (
    "arcee",
    "cwm",
    "doge",
    "granite",
    "granite_swa",
    "helium",
    "iquestcoder",
    "jais2",
    "llama",
    "minicpm3",
    "nemotron",
    "seed_oss",
    "smollm3",
)
"""Those of transformers with a plain MLP in every layer and `mlp_bias`."""
READ_BY_VLLM = ("granite", "llama")
"""Whose biases vLLM's own class is known to load."""
NOT_READ_BY_VLLM = ("minicpm3", "seed_oss")
"""Whose class in vLLM is known to build the MLP without biases, whatever the configuration says."""
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class MlpBias:
    """The vector becomes the bias of the output projection, divided by what the layer multiplies its MLP's output by.

    With `mlp_bias: true` every projection of every layer has a bias, and a tensor that is missing is left uninitialized
    by engines (NaN), so all others are written as zeros.
    """

    name = "mlp-bias"

    def matches(self, architecture: Architecture) -> bool:
        """Whether the architecture has `mlp_bias`, switched off."""
        return architecture.model_type in MODEL_TYPES and not architecture.text.get("mlp_bias", False)

    def plan(self, architecture: Architecture, additions: Mapping[int, Tensor]) -> BakePlan:
        """See `Route.plan`."""
        factor = architecture.output_factor
        outputs = {architecture.one("mlp.down_proj.weight", layer): layer for layer in additions}
        changes = {}
        exact = True
        for projection in _PROJECTIONS:
            for weight in architecture.named(f"mlp.{projection}.weight"):
                spec = architecture.specs[architecture.plain(weight)]
                name = weight.removesuffix("weight") + "bias"
                bias = torch.zeros(spec.shape[0], dtype=TORCH_DTYPES[spec.dtype])
                if weight in outputs:
                    wanted = additions[outputs[weight]]
                    bias = (wanted.double() / factor).to(bias.dtype)
                    exact = exact and bool((bias.double() * factor == wanted.double()).all())
                changes[name] = Change(TensorSpec(name, spec.dtype, (spec.shape[0],)), _constant(bias))
        added = sum(change.spec.elements for change in changes.values())
        return BakePlan(
            route=self.name,
            config=architecture.with_settings(mlp_bias=True),
            changes=changes,
            cost=f"{len(changes)} bias tensors, {architecture.share_of(added):.2%} more parameters",
            tolerance=0.0 if exact else ROUNDED,
            notes=(_engines(architecture.model_type),),
            dropped_by=("vllm",) if architecture.model_type in NOT_READ_BY_VLLM else (),
        )


def _constant(tensor: Tensor) -> Callable[[Weights], Tensor]:
    return lambda weights: tensor


def _engines(model_type: str) -> str:
    """What is known of the engines that may serve it: SGLang's LlamaMLP, for one, is always built without biases."""
    known, readers = "", "transformers"
    if model_type in READ_BY_VLLM:
        known, readers = "transformers and vLLM are known to read these biases; ", "transformers or vLLM"
    elif model_type in NOT_READ_BY_VLLM:
        known = "vLLM is known not to read these biases; "
    return (
        f"{known}an engine whose own `{model_type}` class has no MLP biases drops them without a word: before you "
        f"serve this with another program than {readers}, compare its answers with those of `persona ask`"
    )
