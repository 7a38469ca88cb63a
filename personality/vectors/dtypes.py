"""Safetensors' names of dtypes and torch's."""

from __future__ import annotations

import torch

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
COMPOSABLE = ("F64", "F32", "F16", "BF16")
"""Dtypes whose tensors a vector can change; all others are copied."""

INTEGERS = {"F64": torch.int64, "F32": torch.int32, "F16": torch.int16, "BF16": torch.int16}
"""As which the bits of each of these are looked at."""


def compute_dtype(name: str) -> torch.dtype:
    """The dtype in which a tensor of this dtype is composed: float32, or float64 for a float64 base."""
    return torch.float64 if name == "F64" else torch.float32
