"""What baking needs to know of a base: its configuration as it stands in the file, and its tensors by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.dtypes import COMPOSABLE
from personality.vectors.layers import layer_of

_SCALE_DEPTH = 1.4
"""What transformers takes where a MiniCPM3 configuration does not say."""


class Architecture:
    """A base's configuration and the names, dtypes and shapes of its tensors.

    Args:
        config: config.json as data.
        specs: the tensors.
        folder: where configuration and tokenizer lie; None when there is none to read.
    """

    def __init__(self, config: Mapping[str, Any], specs: Mapping[str, TensorSpec], folder: Path | None = None) -> None:
        self.config = dict(config)
        self.specs = specs
        self.folder = folder

    @property
    def text(self) -> dict[str, Any]:
        """The language model's settings, also inside a model that sees."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def model_type(self) -> str:
        """Such as `qwen3`."""
        return str(self.text.get("model_type") or self.config.get("model_type") or "unknown")

    def with_settings(self, **changes: Any) -> dict[str, Any]:
        """The whole configuration with some of the language model's settings changed."""
        text = {**self.text, **changes}
        return {**self.config, "text_config": text} if self.text is not self.config else text

    def named(self, suffix: str, layer: int | None = None) -> list[str]:
        """Names of the decoder layers' tensors that end in `.suffix`, of one layer or of all."""
        return [
            name
            for name in self.specs
            if name.endswith(f".{suffix}")
            and (found := layer_of(name)) is not None
            and (layer is None or found == layer)
        ]

    def one(self, suffix: str, layer: int) -> str:
        """The one tensor of a layer whose name ends in `.suffix`.

        Raises:
            IncompatibleError: when there is none, several, or a quantized one.
        """
        found = self.named(suffix, layer)
        if len(found) != 1:
            raise IncompatibleError(
                f"layer {layer} of this `{self.model_type}` model has {len(found)} tensors named `…{suffix}`, not one",
                "its keys are not those that transformers writes: load it there and `save_pretrained` it",
            )
        return self.plain(found[0])

    def plain(self, name: str) -> str:
        """The name, when its tensor is of a dtype that something can be added to.

        Raises:
            IncompatibleError: when it is quantized.
        """
        if self.specs[name].dtype not in COMPOSABLE:
            raise IncompatibleError(
                f"`{name}` is {self.specs[name]}: nothing can be written beside quantized weights",
                "use the unquantized model as the base",
            )
        return name

    @property
    def output_factor(self) -> float:
        """What a decoder layer multiplies its MLP's output by before adding it to the residual stream.

        Raises:
            IncompatibleError: when that is 0, so that nothing behind the MLP reaches the stream.
        """
        text = self.text
        factor = 1.0
        if self.model_type in ("granite", "granite_swa"):
            factor = float(text.get("residual_multiplier", 1.0))
        elif self.model_type == "minicpm3":
            depth = text.get("scale_depth", _SCALE_DEPTH)
            # Null stands for √L, which leaves the output as it is.
            factor = 1.0 if depth is None else float(depth) / math.sqrt(int(text["num_hidden_layers"]))
        if factor == 0:
            raise IncompatibleError(
                f"this `{self.model_type}` model multiplies its MLP's output by 0: what is added there is lost",
                "check `residual_multiplier` or `scale_depth` in its config.json",
            )
        return factor

    def share_of(self, elements: int) -> float:
        """So many elements as a share of the model's."""
        return elements / max(1, sum(spec.elements for spec in self.specs.values()))
