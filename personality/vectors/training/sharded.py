"""Parameters that `fully_shard` has spread over processes: the part that is here, and the sums over all parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from personality.manifests.errors import UsageError

# torch 2.13 gave these new names and warns of the old ones.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Sharding:
    """How a parameter's first dimension is spread: in equal chunks, the last ones shorter or empty.

    Attributes:
        group: the processes among which it is spread.
        ranks: their number.
        rank: this one's, from 0.
    """

    group: dist.ProcessGroup
    ranks: int
    rank: int

    def part(self, size: int) -> tuple[int, int]:
        """The rows of a dimension that belong to this process.

        Args:
            size: of the whole dimension.

        Returns:
            First row and row behind the last.
        """
        chunk = self.chunk(size)
        return min(size, self.rank * chunk), min(size, (self.rank + 1) * chunk)

    def chunk(self, size: int) -> int:
        """Rows of the largest part of a dimension of `size` rows."""
        return -(-size // self.ranks)

    def root_of_squares(self, norms: Tensor) -> Tensor:
        """Norms of the whole from norms of the parts.

        Args:
            norms: float32, any shape, of what is on this process.

        Returns:
            float32, the same shape and the same bits on every process.
        """
        squares = norms.double().square_()
        dist.all_reduce(squares, group=self.group)
        return squares.sqrt_().float()

    def sum_and_split(self, values: Tensor) -> Tensor:
        """Add up (n, r) over the processes and keep this one's part.

        Args:
            values: float32 (n, r) on every process.

        Returns:
            float32 (rows of `part(n)`, r).
        """
        size = values.shape[0]
        chunk = self.chunk(size)
        padded = _pad(values, chunk * self.ranks)
        mine = torch.empty(chunk, values.shape[1], dtype=values.dtype, device=values.device)
        _reduce_scatter(mine, padded, group=self.group)
        start, stop = self.part(size)
        return mine[: stop - start]

    def join(self, part: Tensor, size: int) -> Tensor:
        """Put the parts of a vector together again.

        Args:
            part: 1-D, as many as `part(size)` says.
            size: of the whole.

        Returns:
            (size,) on every process.
        """
        chunk = self.chunk(size)
        whole = torch.empty(chunk * self.ranks, dtype=part.dtype, device=part.device)
        _all_gather(whole, _pad(part.contiguous(), chunk), group=self.group)
        return whole[:size]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is on this process: the tensor itself unless it is a DTensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharding_of(param: Tensor) -> Sharding | None:
    """How a parameter is spread over processes.

    Args:
        param: a tensor, or a DTensor sharded in its first dimension over one dimension of its mesh and
            replicated over the others (FSDP and HSDP).

    Returns:
        None for what is whole on this process.

    Raises:
        UsageError: it is spread in another way.
    """
    if getattr(param, "_fsdp_flattened", False):
        raise UsageError(
            f"Apollo: a parameter of shape {tuple(param.shape)} was flattened by FSDP's first version, so its "
            "rows and columns are lost",
            "use torch.distributed.fsdp.fully_shard, with accelerate `--fsdp_version 2`",
        )
    if not isinstance(param, DTensor):
        return None
    spread = [i for i, placement in enumerate(param.placements) if not placement.is_replicate()]
    if not spread:
        return None
    placement = param.placements[spread[0]]
    if len(spread) > 1 or type(placement) is not Shard or placement.dim != 0:
        raise UsageError(
            f"Apollo: a parameter of shape {tuple(param.shape)} is placed as {tuple(param.placements)}",
            "shard parameters in their first dimension only, as fully_shard does by default",
        )
    mesh = param.device_mesh
    return Sharding(mesh.get_group(spread[0]), mesh.size(spread[0]), mesh.get_local_rank(spread[0]))


def placed_like(param: Tensor, part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of state, placed as its parameter is, so that distributed checkpoints can store and reshard it.

    Args:
        param: the parameter.
        part: this process's part of the state.
        shape: of the whole.

    Returns:
        `part` itself, or a DTensor around it if the parameter is one.
    """
    if not isinstance(param, DTensor):
        return part
    whole = torch.empty(shape, device="meta")
    return DTensor.from_local(
        part, param.device_mesh, param.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _pad(values: Tensor, rows: int) -> Tensor:
    """Zeros below, up to `rows` rows."""
    if values.shape[0] == rows:
        return values
    return torch.cat([values, values.new_zeros(rows - values.shape[0], *values.shape[1:])])
