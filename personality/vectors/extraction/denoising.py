"""The directions in which a layer mostly writes, onto which a steering direction can be projected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from personality.manifests.errors import IncompatibleError, UsageError
from personality.vectors.steering.decoder_layers import decoder_layers, residual_width
from personality.vectors.training.selection import group_of

_OUTPUT_GROUPS: Final = frozenset({"mlp.down", "experts.down", "experts.shared.down"})


def output_subspaces(model: nn.Module, components: int) -> Iterator[Tensor]:
    """For each decoder layer the leading left singular vectors of its feed-forward block's output weight.

    The output weight W (d, ·) is what writes to the residual stream: the down projection, of all experts side by side
    where there are experts. Its left singular vectors are the eigenvectors of ΣWWᵀ (d, d), to which each expert adds,
    so experts are never joined into one matrix. Products in float32, sums and eigenvectors in float64.

    Args:
        model: causal language model of transformers.
        components: m, at least 1 and at most d.

    Yields:
        float64 (d, m) with orthonormal columns, on the CPU, layer by layer.

    Raises:
        UsageError: m is not between 1 and d.
        IncompatibleError: a layer without such a weight, or with one in a packed format.
    """
    width = residual_width(model)
    if not 1 <= components <= width:
        raise UsageError(
            f"{components} components: the residual stream has {width}", f"give a number between 1 and {width}"
        )
    for layer, block in enumerate(decoder_layers(model)):
        gram = _gram(block, width, layer)
        yield torch.linalg.eigh(gram)[1].flip(1)[:, :components].contiguous()


@torch.no_grad()
def _gram(block: nn.Module, width: int, layer: int) -> Tensor:
    """Float64 (d, d): ΣWWᵀ over the block's output weights."""
    total: Tensor | None = None
    for name, parameter in block.named_parameters():
        if group_of(name) not in _OUTPUT_GROUPS or parameter.dim() < 2:
            continue
        owner = block.get_submodule(name.rpartition(".")[0])
        if not parameter.is_floating_point() or width not in parameter.shape[-2:]:
            raise IncompatibleError(
                f"layer {layer}: `{name}` is {tuple(parameter.shape)} of {parameter.dtype}, not a matrix to width "
                f"{width}",
                "denoising needs unquantized weights: load the base without quantization, or leave out `--denoise`",
            )
        for weight in parameter if parameter.dim() == 3 else (parameter,):
            W = (weight.T if _stored_by_input(owner, parameter, width) else weight).float()
            product = (W @ W.T).cpu().double()
            total = product if total is None else total.add_(product)
    if total is None:
        raise IncompatibleError(
            f"layer {layer} has no feed-forward output weight that is known by its name (`down_proj`, `c_proj`, `w2`…)",
            "extract without `--denoise`",
        )
    return total


def _stored_by_input(owner: nn.Module, parameter: Tensor, width: int) -> bool:
    """Whether a weight is (inner, d) instead of (d, inner): GPT-2's `Conv1D` and packed experts of some models."""
    rows, columns = parameter.shape[-2:]
    if rows != columns:
        return bool(columns == width)
    return type(owner).__name__ == "Conv1D" or bool(getattr(owner, "is_transposed", False))
