"""Random projections of gradients: drawn from seeds, kept only while a period lasts, multiplied fast."""

from __future__ import annotations

import functools
import math
from typing import Final

import torch
from torch import Tensor

CACHE_BYTES: Final = 64 << 20
"""Projections kept between steps take at most this; the rest are drawn again at each step."""

_MASK_64 = (1 << 64) - 1

# Below this many elements the conversion of the gradient costs more than bfloat16's faster product saves.
_BF16_ELEMENTS = 1 << 18


def mix_seed(*parts: int) -> int:
    """One well-spread 63-bit seed out of several integers (SplitMix64's finalizer, folded).

    Neighboring parameters and periods have neighboring numbers; without mixing, generators seeded with
    them would give correlated projections on some devices.

    Args:
        parts: any integers, for example base seed, index of a parameter, number of a period.

    Returns:
        An integer in [0, 2**63), the same on every machine.
    """
    state = 0
    for part in parts:
        state = (state + (part & _MASK_64) + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state >> 1


def projection(seed: int, period: int, rank: int, size: int, device: torch.device) -> Tensor:
    """The random matrix P of one period, a function of its seed.

    Args:
        seed: the parameter's own seed.
        period: number of the period, step // update_proj_gap.
        rank: r, rows of P.
        size: m, columns of P.
        device: where the parameter lives. Generators differ between kinds of device, so the same seed
            gives another (equally good) P on a GPU than on a CPU.

    Returns:
        float32 (r, m) with independent entries from N(0, 1/r), so that E|Pg|^2 = |g|^2.
    """
    generator = torch.Generator(device=device).manual_seed(mix_seed(seed, period))
    drawn = torch.randn(rank, size, generator=generator, device=device, dtype=torch.float32)
    return drawn.mul_(1.0 / math.sqrt(rank))


class ProjectionCache:
    """Projections of the current periods, as long as there is room.

    A drawn matrix serves for a whole period, so drawing costs next to nothing where it is kept. What does not
    fit is drawn again whenever it is asked for, with the same result: the cache changes speed, never bits.
    The first to come are kept, because a cache that evicts the oldest would never hit when parameters are
    visited in turn.

    Args:
        limit: bytes it may take.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._kept: dict[int, tuple[int, Tensor]] = {}
        self.bytes = 0

    def get(self, seed: int, period: int, rank: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """P transposed, in the dtype in which it is multiplied.

        Args:
            seed, period, rank, size, device: as for `projection`; one seed always goes with one shape.
            dtype: float32 or bfloat16.

        Returns:
            Contiguous (m, r). Not to be changed by the caller.
        """
        found = self._kept.get(seed)
        if found is not None and found[0] == period:
            return found[1]
        drawn = projection(seed, period, rank, size, device).T.to(dtype).contiguous()
        if found is not None:
            self.bytes -= _bytes(found[1])
            del self._kept[seed]
        if self.bytes + _bytes(drawn) <= self._limit:
            self._kept[seed] = (period, drawn)
            self.bytes += _bytes(drawn)
        return drawn


def product_dtype(grad: Tensor, rank: int) -> torch.dtype:
    """The dtype in which a gradient is best projected.

    Rounding P and G to bfloat16 (relative error up to 2**-9, independent from entry to entry) is far below
    what a random projection itself does to a norm (relative error 1/sqrt(2r)), and a processor that
    multiplies bfloat16 natively does so at twice the speed of float32 or more.

    Args:
        grad: as it will be given to `project`.
        rank: r.

    Returns:
        bfloat16 for large gradients on such a device (rank 1 is bound by memory, so there it would not pay,
        except where the gradient already is bfloat16), otherwise float32.
    """
    worth_it = grad.dtype == torch.bfloat16 or (grad.dtype == torch.float32 and rank > 1)
    if worth_it and grad.numel() >= _BF16_ELEMENTS and _multiplies_bfloat16(grad.device.type):
        return torch.bfloat16
    return torch.float32


def project(grad: Tensor, P: Tensor, *, wide: bool) -> Tensor:
    """R transposed: the gradient's image with one row per channel.

    Args:
        grad: (..., rows, columns); rows are projected if `wide`, otherwise columns.
        P: transposed projection (m, r), float32 or bfloat16, m the projected dimension of `grad`.
        wide: whether rows <= columns.

    Returns:
        float32 (..., n, r), contiguous. Channels in rows make their norms sums over neighbors in memory.
    """
    G = grad.to(P.dtype)
    channels = G.mT if wide else G
    if G.ndim == 2:
        if wide and P.dtype == torch.float32 and P.shape[1] <= 32:  # a thin product is fastest in G's own layout
            return (P.T @ G).T.contiguous()
        return (channels @ P).float()
    stack = channels.reshape(-1, *channels.shape[-2:]) if G.ndim > 3 else channels
    # bmm, since matmul would copy a transposed stack into one tall matrix.
    image = torch.bmm(stack, P.expand(stack.shape[0], *P.shape))
    return image.float().reshape(*channels.shape[:-1], P.shape[1])


@functools.cache
def _multiplies_bfloat16(device_type: str) -> bool:
    """Whether products of bfloat16 are done in hardware."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device_type != "cpu":
        return False
    return bool(torch.backends.mkldnn.enabled) and torch.cpu._is_avx512_bf16_supported()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
