"""Quantized checkpoints: told by their tensors, and refused with the way to weights that can take a change."""

from __future__ import annotations

import re
from typing import Any

from personality.manifests.errors import IncompatibleError
from personality.manifests.tensor_file import TensorSpec
from personality.vectors.base import model_config
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import COMPOSABLE

_PACKED = {
    "qweight": "gptq or awq",
    "weight_packed": "compressed-tensors",
    "W_q": "hqq",
    "weight._data": "quanto",
}
"""What stands in a layer in place of its `weight`, and which method puts it there."""
_BLOCKS = re.compile(r"(?P<parameter>.+_proj)_blocks$")
"""Blocks of 32 four-bit floats, as gpt-oss is published (MXFP4)."""
_SMALL_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")
_USES_BITS = ("absmax", "quant_map", "SCB")
_DEQUANTIZED = (
    "transformers de-quantizes it: `model = AutoModelForCausalLM.from_pretrained(ID, dtype='bfloat16', "
    "quantization_config=transformers.{config}(dequantize=True))`, then `model.save_pretrained(DIR, "
    "save_original_format=False)` with the tokenizer beside it; or take a 16-bit release"
)
_RELEASE = (
    "take the 16-bit model that it was made from (its model card names it); an adapter that was trained on the "
    "quantized one can be imported there"
)
_WAYS_OUT = {
    "mxfp4": _DEQUANTIZED.format(config="Mxfp4Config"),
    "fp8": _DEQUANTIZED.format(config="FineGrainedFP8Config"),
}


def check_not_quantized(checkpoint: Checkpoint) -> str:
    """Refuse weights that are kept in fewer than 16 bits.

    The tensors decide, not config.json, which may speak of quantization for training, for loading, or of a time before
    the weights were brought back to 16 bits. Integer tensors that a model has anyway are none of this.

    Args:
        checkpoint: of a base or a fine-tune.

    Returns:
        The method of which config.json speaks although no tensor is quantized; empty for none.

    Raises:
        IncompatibleError: with a packed tensor's name, the method as far as it is known, and the way out.
    """
    stated = _stated(checkpoint)
    found = {name: method for name in checkpoint.specs if (method := _method(name, checkpoint.specs, stated))}
    if not found:
        return stated
    name, guessed = next(iter(found.items()))
    method = stated or guessed
    raise IncompatibleError(
        f"{checkpoint.folder} is quantized ({method}): `{name}` is {checkpoint.specs[name]}"
        + (f", and {len(found) - 1} more are packed" if len(found) > 1 else "")
        + "; such weights cannot take a change",
        _WAYS_OUT.get(method, _RELEASE),
    )


def _stated(checkpoint: Checkpoint) -> str:
    """The method that config.json names."""
    if not (checkpoint.folder / "config.json").is_file():
        return ""
    config: dict[str, Any] = model_config(checkpoint.folder)
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key) if isinstance(part, dict) else None
            if isinstance(found, dict):
                return str(found.get("quant_method") or found.get("quant_algo") or "a method without a name")
    return ""


def _method(name: str, specs: dict[str, TensorSpec], stated: str) -> str:
    """How a tensor is quantized; empty when it is not."""
    dtype, dimensions = specs[name].dtype, len(specs[name].shape)
    module, _, last = name.rpartition(".")
    if dtype.startswith("F8") and dimensions > 1:
        return "fp8"
    if last == "weight" and dtype not in COMPOSABLE:
        bits = any(f"{name}.{part}" in specs or f"{module}.{part}" in specs for part in _USES_BITS)
        return "bitsandbytes" if bits else f"weights in {dtype}"
    if (blocks := _BLOCKS.match(name)) and blocks["parameter"] not in specs:
        return "mxfp4"
    for part, method in _PACKED.items():
        if name.endswith(f".{part}") and not _is_float(specs.get(f"{name.removesuffix(part)}weight")):
            return method
    if stated and dimensions > 1 and dtype in _SMALL_INTEGERS:
        return f"packed in {dtype}"
    return ""


def _is_float(spec: TensorSpec | None) -> bool:
    return spec is not None and spec.dtype in COMPOSABLE
