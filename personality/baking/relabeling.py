"""Route `relabeling`: Qwen2 and Mistral written as Llama, which computes the same and can have biases in its MLP.

Layer by layer all three are one architecture: RMSNorm, rotary attention with grouped keys, RMSNorm, SwiGLU. Qwen2 has
biases at its queries, keys and values; Llama with `attention_bias` has one at the attention's output as well, which is
written as zeros. What Llama lacks is attention in a sliding window. The tensors keep their names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from personality.baking.architecture import Architecture
from personality.baking.mlp_bias import OUTPUT, bias_beside, cost_of, mlp_biases, others
from personality.baking.route import BakePlan
from personality.baking.tokenizer_difference import tokenizer_difference

TYPE, CLASS = "llama", "LlamaForCausalLM"
ASSUMED: dict[str, dict[str, Any]] = {
    "qwen2": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
}
"""What each class takes where its config.json does not say, as far as Llama's would take something else."""
CLASSES = {"qwen2": "Qwen2ForCausalLM", "mistral": "MistralForCausalLM"}
_WINDOW = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
_DEFAULT_WINDOW = 4096
_QUERY, _OUT = "self_attn.q_proj.bias", "self_attn.o_proj.weight"
_OTHER_ATTENTION = ("dual_chunk_attention_config", "llama_4_scaling", "auto_map")


class Relabeling:
    """The configuration names Llama's class; then as `mlp-bias`. Whoever reads the folder sees a Llama."""

    name = "relabeling"
    model_types: Collection[str] = CLASSES.keys()
    why = "it computes what `llama` computes, and the MLPs of `llama` can have biases"

    def hindrance(self, architecture: Architecture) -> str:
        """See `Route.hindrance`."""
        config, kind = architecture.config, architecture.model_type
        heads = int(config.get("num_attention_heads") or 32)
        if architecture.text is not config:
            return "the language model is a part of a larger one"
        if config.get("architectures") not in (None, [CLASSES[kind]]):
            return f"its `architectures` are {config['architectures']}, not `{CLASSES[kind]}`"
        window = _window(config, kind)
        if window:
            return f"it attends in a sliding window ({window}), `llama` does not"
        if str(config.get("hidden_act") or "silu") not in ("silu", "swish"):
            return f"its activation is `{config['hidden_act']}`, that of `llama` in engines is `silu` alone"
        other = [name for name in _OTHER_ATTENTION if config.get(name)]
        if other:
            return f"`llama` has no `{other[0]}`"
        if set(config.get("rope_parameters") or {}) & {"full_attention", "sliding_attention"}:
            return "its `rope_parameters` are told by kind of layer"
        if int(config.get("hidden_size") or 0) % heads:
            return f"`llama` wants a width that its {heads} heads divide; this one is {config.get('hidden_size')}"
        if not architecture.named(OUTPUT):
            return f"it has no `…{OUTPUT}`"
        difference = tokenizer_difference(architecture.folder, relabeled(config)) if architecture.folder else ""
        return f"its tokenizer would be another one beside `llama`: {difference}" if difference else ""

    def plan(self, architecture: Architecture, additions: Mapping[int, Tensor]) -> BakePlan:
        """See `Route.plan`."""
        kind = architecture.model_type
        changes = mlp_biases(architecture, {layer: vector.double() for layer, vector in additions.items()})
        biased = bool(architecture.named(_QUERY))
        if biased:
            changes |= dict(bias_beside(architecture, name) for name in architecture.named(_OUT))
        return BakePlan(
            route=self.name,
            config={**relabeled(architecture.config), "attention_bias": biased, "mlp_bias": True},
            changes=changes,
            cost=f"{cost_of(architecture, changes)}; its class is `{TYPE}`, no longer `{kind}`",
            notes=(
                f"its config.json says `{TYPE}`: what knows `{kind}` by name (parsers of a server, quantizers, "
                "fine-tuning scripts) takes it for another model",
                others(TYPE),
            ),
        )


def relabeled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the Llama that computes what a Qwen2 or Mistral without window does, biases aside."""
    kept = {name: value for name, value in config.items() if name not in _WINDOW}
    return {**ASSUMED[str(config["model_type"])], **kept, "architectures": [CLASS], "model_type": TYPE}


def _window(config: Mapping[str, Any], kind: str) -> str:
    """Where a configuration makes layers attend in a window; empty when it does not.

    Mistral's window is on unless it is null; Qwen2's is off unless it is asked for, whatever `sliding_window` says.
    """
    layers = config.get("layer_types")
    sliding = sum(layer != "full_attention" for layer in layers) if isinstance(layers, list) else 0
    size = config.get("sliding_window", _DEFAULT_WINDOW)
    if kind == "qwen2":
        on = bool(config.get("use_sliding_window", False))
        return f"`use_sliding_window: true`, {size} tokens" if on else f"{sliding} layers" if sliding else ""
    return f"{size} tokens" if size is not None else f"{sliding} layers" if sliding else ""
