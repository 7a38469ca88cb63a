"""Route `mlp-bias`: architectures whose configuration can give their MLP's projections biases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

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
    "ernie4_5",
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
"""Those of transformers with a plain MLP in every layer and a setting that gives it biases."""
EVERYWHERE = {"ernie4_5": "use_bias"}
"""Where the setting is not `mlp_bias`, but one that gives the attention's projections biases as well."""
OUTPUT = "mlp.down_proj.weight"
_PROJECTIONS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_ATTENTION = tuple(f"self_attn.{name}_proj.weight" for name in "qkvo")


class MlpBias:
    """The vector becomes the bias of the output projection, divided by what the layer multiplies its MLP's output by.

    With the setting every projection of every layer has a bias, and a tensor that is missing is left uninitialized
    by engines (NaN), so all others are written as zeros.
    """

    name = "mlp-bias"
    model_types: Collection[str] = MODEL_TYPES
    why = "a setting gives the MLPs of its class biases"

    def hindrance(self, architecture: Architecture) -> str:
        """See `Route.hindrance`."""
        setting = _setting(architecture)
        if architecture.text.get(setting, False):
            return f"its configuration says `{setting}: true` already"
        return "" if architecture.named(OUTPUT) else f"it has no `…{OUTPUT}`"

    def plan(self, architecture: Architecture, additions: Mapping[int, Tensor]) -> BakePlan:
        """See `Route.plan`."""
        factor = architecture.output_factor
        wanted = {layer: (vector.double() / factor) for layer, vector in additions.items()}
        changes = mlp_biases(architecture, wanted)
        if architecture.model_type in EVERYWHERE:
            weights = [name for suffix in _ATTENTION for name in architecture.named(suffix)]
            changes |= dict(bias_beside(architecture, weight) for weight in weights)
        exact = all(
            bool((vector.to(_dtype(architecture, layer)).double() * factor == additions[layer].double()).all())
            for layer, vector in wanted.items()
        )
        return BakePlan(
            route=self.name,
            config=architecture.with_settings(**{_setting(architecture): True}),
            changes=changes,
            cost=cost_of(architecture, changes),
            tolerance=0.0 if exact else ROUNDED,
            notes=(others(architecture.model_type),),
        )


class VllmMlpBias:
    """The same for Mistral, whose class in vLLM reads `mlp_bias`, as it is built on Llama's; that of transformers has
    no such setting, and leaves the biases out without a word.
    """

    name = "mlp-bias-for-vllm"
    model_types: Collection[str] = ("mistral",)
    why = "vLLM's class for it is built on that of Llama, which has biases in its MLP; transformers' class has none"

    def hindrance(self, architecture: Architecture) -> str:
        """See `Route.hindrance`."""
        if architecture.text is not architecture.config:
            return "the language model is a part of a larger one"
        return "" if architecture.named(OUTPUT) else f"it has no `…{OUTPUT}`"

    def plan(self, architecture: Architecture, additions: Mapping[int, Tensor]) -> BakePlan:
        """See `Route.plan`."""
        changes = mlp_biases(architecture, {layer: vector.double() for layer, vector in additions.items()})
        return BakePlan(
            route=self.name,
            config=architecture.with_settings(mlp_bias=True),
            changes=changes,
            cost=cost_of(architecture, changes),
            notes=(
                "only vLLM reads these biases: transformers loads this folder and answers without the vectors, without "
                "a word",
            ),
            dropped_by=("hf",),
            readable_by_transformers=False,
        )


def mlp_biases(architecture: Architecture, vectors: Mapping[int, Tensor]) -> dict[str, Change]:
    """A bias for every projection of every layer's MLP: the vectors (d,) by layer at the outputs, zeros elsewhere."""
    outputs = {architecture.one(OUTPUT, layer): vector for layer, vector in vectors.items()}
    weights = [name for projection in _PROJECTIONS for name in architecture.named(f"{projection}.weight")]
    return dict(bias_beside(architecture, weight, outputs.get(weight)) for weight in weights)


def bias_beside(architecture: Architecture, weight: str, vector: Tensor | None = None) -> tuple[str, Change]:
    """Name and content of a bias for a projection, in its weight's dtype: a vector (rows,), or zeros."""
    spec = architecture.specs[architecture.plain(weight)]
    name = weight.removesuffix("weight") + "bias"
    rows = spec.shape[0]
    bias = (torch.zeros(rows) if vector is None else vector).to(TORCH_DTYPES[spec.dtype])
    return name, Change(TensorSpec(name, spec.dtype, (rows,)), _constant(bias))


def cost_of(architecture: Architecture, changes: Mapping[str, Change]) -> str:
    """What so many new biases cost, in words."""
    added = sum(change.spec.elements for change in changes.values())
    return f"{len(changes)} bias tensors, {architecture.share_of(added):.2%} more parameters"


def others(model_type: str) -> str:
    """What nobody can promise of other engines: SGLang's LlamaMLP, for one, is always built without biases."""
    return (
        f"an engine whose own `{model_type}` class has no MLP biases drops them without a word: before you serve this "
        "with another program than transformers or vLLM, compare its answers with those of `persona ask`"
    )


def _setting(architecture: Architecture) -> str:
    return EVERYWHERE.get(architecture.model_type, "mlp_bias")


def _dtype(architecture: Architecture, layer: int) -> torch.dtype:
    return TORCH_DTYPES[architecture.specs[architecture.one(OUTPUT, layer)].dtype]


def _constant(tensor: Tensor) -> Callable[[Weights], Tensor]:
    return lambda weights: tensor
