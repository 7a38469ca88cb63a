"""What a file of directions has to fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from personality.manifests.errors import IncompatibleError


@dataclass(frozen=True)
class BaseShape:
    """The base, as far as directions depend on it.

    Attributes:
        layers: number L of decoder blocks; layer l, 0 ≤ l < L, means the output of block l.
        width: width d of the residual stream.
        model_type: as its config.json names the architecture, such as `qwen3`.
    """

    layers: int
    width: int
    model_type: str

    def __str__(self) -> str:
        return f"{self.layers} layers (0-{self.layers - 1}) of width {self.width}"


def base_shape(folder: Path) -> BaseShape:
    """The shape of the model in a folder, from its configuration alone.

    Raises:
        IncompatibleError: for a model without decoder layers.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder))
    text = config.get_text_config(decoder=True)
    try:
        return BaseShape(int(text.num_hidden_layers), int(text.hidden_size), str(config.model_type))
    except AttributeError as error:
        raise IncompatibleError(
            f"the {config.model_type} model in {folder} has no decoder layers ({error}), so no direction fits it",
            "steering needs a decoder-only transformers model",
        ) from error
