r"""Route `swiglu-widening`: gated MLPs without biases behind an RMSNorm get neurons whose sum is the vector.

The MLP sees x = γ ⊙ n, where the norm makes n from the hidden state h: Σ_i n_i² = d · m/(m + ε) with m the mean of
h², so that Σ n_i² is d but for ε. A neuron gives act(g·x)(u·x), and act(z) → z/2 as z → 0 for SiLU and GELU alike. So a
neuron that sees coordinate i alone, with a gate so small that its activation is linear in floating point,

    act(g_i γ_i n_i) · u_i γ_i n_i = ½ g_i u_i γ_i² n_i² = n_i²/d   for   g_i u_i = 2/(d γ_i²),

and d of them, each with v as its column of the output projection, emit Σ_i v n_i²/d = v · m/(m + ε) at every position.
Fewer cannot do: a neuron is a quadratic form of n with at most one positive eigenvalue, and their sum must be the
identity. (With ordinary gates, act(z) z + act(−z)(−z) = z² takes two neurons for a coordinate.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from personality.baking.architecture import Architecture
from personality.baking.route import BakePlan, Change
from personality.baking.weights import Weights
from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorSpec

NORM_OFFSET = {"gemma": 1.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0, "qwen3_5_text": 1.0}
"""What is added to the norm's stored weight to give γ, by model type."""
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new")
_GATE, _UP, _DOWN = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
# Multi-token prediction heads share the configuration's width; transformers leaves them out, other engines load them.
_MTP = re.compile(r"(?:^|\.)mtp\..*\.mlp\.(?:gate|up|down)_proj\.weight$")
_NORM = "post_attention_layernorm.weight"
_SMALL = 2.0**-32
"""Size of the gates: the next term of act(z), z²/4, is below one part in 2³⁴ · |n_i|, less than float32 resolves."""
_LEAST_GAMMA = 1e-6
_TOLERANCE = 0.005
"""Of the steering's own effect. m/(m + ε) falls short of 1 by ε/m: with ε = 1e-6 by 0.1% where the hidden state has a
root mean square of 0.03, the size of many models' embeddings, and by far less in later layers."""
_MANTISSAS = 256


class SwigluWidening:
    """The vector becomes d more neurons in each layer (`intermediate_size` is one number for all of them); those of
    layers where nothing acts have zero weights.
    """

    name = "swiglu-widening"
    model_types: Collection[str] = NORM_OFFSET.keys()
    why = "its gated MLP behind an RMSNorm can be widened by neurons whose sum is the vector, and its class stays"

    def hindrance(self, architecture: Architecture) -> str:
        """See `Route.hindrance`."""
        if _activation(architecture) not in _ACTIVATIONS:
            return f"its activation `{_activation(architecture)}` is not linear near 0 with slope ½"
        return "" if architecture.named(_DOWN) else f"it has no `…{_DOWN}`"

    def plan(self, architecture: Architecture, additions: Mapping[int, Tensor]) -> BakePlan:
        """See `Route.plan`."""
        offset = NORM_OFFSET[architecture.model_type]
        acting: dict[str, Tensor] = {}
        norms: dict[str, str] = {}
        for layer, vector in additions.items():
            norm = architecture.one(_NORM, layer)
            for suffix in (_GATE, _UP, _DOWN):
                name = architecture.one(suffix, layer)
                if architecture.specs[name].dtype == "F16":
                    raise IncompatibleError(
                        f"`{name}` is float16, whose range is too narrow for the gates that baking adds",
                        "use the base in bfloat16, or export without steering: `--without-steering`",
                    )
                acting[name], norms[name] = vector, norm
        changes = {}
        neurons = next(iter(additions.values())).numel()
        width = 0
        names = {name for suffix in (_GATE, _UP, _DOWN) for name in architecture.named(suffix)}
        names |= {name for name in architecture.specs if _MTP.search(name)}
        for name, spec in architecture.specs.items():
            if name not in names:
                continue
            architecture.plain(name)
            down = name.endswith(_DOWN)
            rows, columns = spec.shape
            width = columns if down else rows
            shape = (rows, columns + neurons) if down else (rows + neurons, columns)
            more = _block(name, acting.get(name), norms.get(name), offset)
            changes[name] = Change(TensorSpec(name, spec.dtype, shape), _widened(name, neurons, more))
        added = sum(change.spec.elements - architecture.specs[name].elements for name, change in changes.items())
        return BakePlan(
            route=self.name,
            config=architecture.with_settings(intermediate_size=width + neurons),
            changes=changes,
            cost=f"{neurons} more neurons in every layer ({width} → {width + neurons}), "
            f"{architecture.share_of(added):.0%} more parameters",
            tolerance=_TOLERANCE,
            notes=(
                "serve it in bfloat16 or float32: float16 and 8-bit weights cannot hold the gates of the added neurons",
            ),
        )


def _activation(architecture: Architecture) -> str:
    text = architecture.text
    return str(text.get("hidden_activation") or text.get("hidden_act") or "silu")


_Block = Callable[[Weights, torch.dtype], Tensor | None]


def _block(name: str, vector: Tensor | None, norm: str | None, offset: float) -> _Block:
    """What makes a projection's added part (d, d); None stands for zeros."""

    def make(weights: Weights, dtype: torch.dtype) -> Tensor | None:
        if vector is None or norm is None:
            return None
        if name.endswith(_DOWN):
            return vector.to(dtype)[:, None].expand(-1, vector.numel())
        gate, up = neurons(weights.tensor(norm).double() + offset, dtype, norm)
        return torch.diag(gate if name.endswith(_GATE) else up)

    return make


def _widened(name: str, more: int, block: _Block) -> Callable[[Weights], Tensor]:
    dimension = 1 if name.endswith(_DOWN) else 0

    def make(weights: Weights) -> Tensor:
        old = weights.tensor(name)
        added = block(weights, old.dtype)
        if added is None:
            shape = list(old.shape)
            shape[dimension] = more
            added = torch.zeros(shape, dtype=old.dtype)
        return torch.cat([old, added.to(old.dtype)], dimension)

    return make


def neurons(gamma: Tensor, dtype: torch.dtype, norm: str = "the norm") -> tuple[Tensor, Tensor]:
    """Weights g and u (d,) of the added neurons, representable in a dtype, with g_i u_i γ_i² d/2 as near 1 as can be.

    In bfloat16 one rounded factor is off by up to 2⁻⁹. Of the gates within a factor of 2 the one is taken whose product
    with its rounded partner is nearest: over 40,000 values of γ that left 4·10⁻⁵ on average and 3·10⁻⁴ at worst.

    Raises:
        IncompatibleError: when the norm shuts a coordinate off (γ_i ≈ 0), so that the MLP cannot see it.
    """
    least = float(gamma.abs().min())
    if least < _LEAST_GAMMA:
        raise IncompatibleError(
            f"`{norm}` has a weight of {least:.2g}: the MLP does not see that coordinate, so nothing exact can be "
            "built on it",
            "train the behavior into the weights (`persona promote`), or export with `--without-steering`",
        )
    wanted = 2 / (gamma.numel() * gamma.double().square())
    steps = 1 + torch.arange(_MANTISSAS, dtype=torch.float64)[:, None] / _MANTISSAS
    # Powers of two away from γ, so that g γ has about the size that is wanted whatever γ is.
    start = _SMALL / torch.exp2(torch.floor(torch.log2(gamma.abs().double())))
    gates = (start * steps).to(dtype).double()
    ups = (wanted / gates).to(dtype).double()
    best = ((gates * ups / wanted) - 1).abs().argmin(0, keepdim=True)
    return gates.gather(0, best)[0].to(dtype), ups.gather(0, best)[0].to(dtype)
