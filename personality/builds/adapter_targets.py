"""Which of a version's changes an adapter can carry: those of linear layers to which engines add low-rank products."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from personality.composition.composer import Composer
from personality.manifests.errors import IncompatibleError
from personality.model import model_class, read_config
from personality.vectors.layers import layer_of

HEAD = "lm_head.weight"
# Classes of vLLM 0.32 whose `embedding_modules` name the output head; the others refuse an adapter for it.
_HEAD_TAKEN = frozenset(
    {
        "ExaoneForCausalLM",
        "Exaone4ForCausalLM",
        "GraniteForCausalLM",
        "GraniteMoeForCausalLM",
        "LlamaForCausalLM",
        "MixtralForCausalLM",
        "NemotronForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3_5ForCausalLM",
    }
)
_NUMBER = re.compile(r"\.\d+\.")


def adapter_targets(composer: Composer, label: str) -> list[str]:
    """The tensors that an adapter of a version changes: all that the version changes, or it is refused.

    Args:
        composer: of the version.
        label: the version's, for errors.

    Returns:
        Names of weight matrices of linear layers, in the base's order.

    Raises:
        IncompatibleError: the version changes no weights, or others than an adapter can carry; with all their names.
    """
    names = composer.touched
    if not names:
        raise IncompatibleError(
            f"{label} changes no weights: there is nothing for an adapter to carry",
            "serve the base itself, or export a version that uses task vectors",
        )
    config = read_config(composer.folder)
    linear = _linear_weights(config)
    architecture = next(iter(getattr(config, "architectures", None) or []), "")
    refused: dict[str, list[str]] = {}
    for name in names:
        reason = _reason(name, composer.specs[name].shape, linear, architecture)
        if reason:
            refused.setdefault(reason, []).append(name)
    if refused:
        count = sum(len(found) for found in refused.values())
        listed = "; ".join(f"{reason}: {_patterns(found)}" for reason, found in refused.items())
        raise IncompatibleError(
            f"an adapter cannot carry {count} of the {len(names)} tensors that {label} changes: {listed}",
            f"export the weights themselves, `persona export {label} --to vllm DIR`, or use vectors that change linear "
            "layers only: `persona train NAME … --lora RANK`, or `--only` with the parts to train",
        )
    return names


def _linear_weights(config: Any) -> set[str]:
    """Weights of the model class's linear layers; the model is not loaded."""
    with torch.device("meta"):
        model = model_class(config)._from_config(config)
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _reason(name: str, shape: tuple[int, ...], linear: set[str], architecture: str) -> str:
    """Why an adapter cannot carry a tensor; empty when it can."""
    if name == HEAD and name in linear:
        return "" if architecture in _HEAD_TAKEN else f"vLLM takes no adapter for the output head of {architecture}"
    if layer_of(name) is None:
        return "outside the layers (embeddings, final norm, towers or heads beside the language model)"
    if len(shape) < 2:
        return "norms, biases and other vectors of numbers"
    if name not in linear:
        return "no linear layers (experts packed together, routers, convolutions)"
    return ""


def _patterns(names: Iterable[str]) -> str:
    """Names with their numbers left out, each with how many there are."""
    counts = Counter(_NUMBER.sub(".*.", name) for name in names)
    return ", ".join(f"`{name}`" + (f" ({count})" if count > 1 else "") for name, count in counts.items())
