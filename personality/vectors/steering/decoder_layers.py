"""The decoder layers of a transformers model."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from personality.manifests.errors import IncompatibleError

_LAYERS = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)$")
_NOT_LANGUAGE = re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model|audio_tower|mtp|encoder)(?:\.|$)")


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a causal language model, in order; the output of block l is what `layer l` means everywhere.

    Raises:
        IncompatibleError: when no list of as many blocks as the configuration promises is found.
    """
    return list(decoder(model)[1])


def decoder(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the blocks, and the blocks.

    Raises:
        IncompatibleError: see `decoder_layers`.
    """
    wanted = text_config(model).num_hidden_layers
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != wanted:
            continue
        if _LAYERS.search(name) and not _NOT_LANGUAGE.search(name):
            return model.get_submodule(name.rpartition(".")[0]), module
    raise IncompatibleError(
        f"{type(model).__name__} has no list of {wanted} decoder layers, so nothing can be read or added after a layer",
        "steering needs a decoder-only transformers model with `layers` or `h`",
    )


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, also inside a model that sees."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def residual_width(model: nn.Module) -> int:
    """Width d of the residual stream."""
    return int(text_config(model).hidden_size)
