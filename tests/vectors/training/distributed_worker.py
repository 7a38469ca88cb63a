"""What one process of `test_distributed_optimizer.py` does: `python distributed_worker.py FOLDER RANK RANKS`.

Every comparison is with a single process's run, made here too. Figures go to FOLDER/RANK.json.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from personality.manifests.errors import UsageError
from personality.vectors.training.apollo import Apollo, state_bytes

STEPS, ROWS = 20, 4
KINDS: dict[str, dict[str, Any]] = {
    "apollo": {"rank": 4},
    "mini": {"rank": 1, "scale_type": "tensor", "weight_decay": 0.1},
}
# Even, uneven and empty shards of wide and tall matrices, stacks, and what Adam steps.
SHAPES = [(4, 6), (3, 5), (5, 3), (2, 9), (9, 2), (3, 4, 6), (1, 6, 4), (5, 6, 2), (7,), (1,), (1, 8), (8, 1)]


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 45, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def sharded_llama(mesh: DeviceMesh) -> Any:
    model = llama()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def optimizer_of(model: nn.Module, kind: str) -> Apollo:
    return Apollo(model.parameters(), lr=1e-2, update_proj_gap=7, seed=3, **KINDS[kind])


def train(model: Any, optimizer: Apollo, steps: range, rank: int = 0, ranks: int = 1) -> list[float]:
    """The loss over the global batch at each step; every process has its rows of it."""
    mine = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    losses = []
    for step in steps:
        ids = torch.randint(0, 97, (ROWS, 12), generator=torch.Generator().manual_seed(step % 2))[mine]
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if ranks > 1:
            dist.all_reduce(total)
        losses.append(float(total) / ranks)
    return losses


def whole(model: nn.Module) -> list[Tensor]:
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def curves(mesh: DeviceMesh, rank: int, ranks: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in KINDS:
        single = llama()
        alone = optimizer_of(single, kind)
        found[f"{kind} single"] = train(single, alone, range(STEPS))
        replica = DistributedDataParallel(llama())
        found[f"{kind} ddp"] = train(replica, optimizer_of(replica, kind), range(STEPS), rank, ranks)
        spread = sharded_llama(mesh)
        optimizer = optimizer_of(spread, kind)
        found[f"{kind} fsdp2"] = train(spread, optimizer, range(STEPS), rank, ranks)
        found[f"{kind} bytes"] = [state_bytes(alone), state_bytes(optimizer)]
    return found


def shapes(ranks: int, kind: str, dtype: torch.dtype, weights: Any, *, replicas: bool) -> float:
    """Largest difference between sharded and whole parameters of every shape, relative to the movement."""

    def run(place: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Apollo]:
        generator = torch.Generator().manual_seed(1)
        params = [nn.Parameter(place(torch.randn(shape, generator=generator).to(dtype))) for shape in SHAPES]
        optimizer = Apollo(params, lr=0.01, update_proj_gap=2, seed=5, weights=weights, **KINDS[kind])
        for _ in range(5):
            for param, shape in zip(params, SHAPES, strict=True):
                param.grad = place(torch.randn(shape, generator=generator).to(dtype))
            optimizer.step()
        return [p.full_tensor() if isinstance(p, DTensor) else p for p in params], optimizer

    mesh = init_device_mesh("cpu", (1, ranks) if replicas else (ranks,))
    placements = [Replicate(), Shard(0)] if replicas else [Shard(0)]
    spread, optimizer = run(lambda tensor: distribute_tensor(tensor, mesh, placements))
    alone, _ = run(lambda tensor: tensor)
    assert optimizer.survival().share_changed > 0.5
    return max(float((a - b).detach().abs().max()) for a, b in zip(spread, alone, strict=True)) / 0.01


def checkpoints(mesh: DeviceMesh, folder: Path, rank: int, ranks: int) -> dict[str, Any]:
    """Stop a sharded run, go on with it in three ways."""
    model = sharded_llama(mesh)
    optimizer = optimizer_of(model, "apollo")
    train(model, optimizer, range(9), rank, ranks)
    save(
        {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)},
        checkpoint_id=folder / "checkpoint",
    )
    full = StateDictOptions(full_state_dict=True)
    all_weights = get_model_state_dict(model, options=full)
    all_state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=full))  # what is whole is not copied
    unbroken = train(model, optimizer, range(9, 15), rank, ranks)

    resumed = sharded_llama(mesh)
    other = Apollo(resumed.parameters(), lr=1.0, rank=4, seed=99)  # what was saved must win
    loaded: dict[str, Any] = {
        "model": get_model_state_dict(resumed),
        "optimizer": get_optimizer_state_dict(resumed, other),
    }
    load(loaded, checkpoint_id=folder / "checkpoint")
    set_model_state_dict(resumed, loaded["model"])
    set_optimizer_state_dict(resumed, other, loaded["optimizer"])
    continued = train(resumed, other, range(9, 15), rank, ranks)
    same = all(torch.equal(a, b) for a, b in zip(whole(model), whole(resumed), strict=True))

    found: dict[str, Any] = {"unbroken": unbroken, "continued": continued, "same bits": same}
    if rank == 0:  # a full state dict is rank 0's, and loads where nothing is sharded
        single = llama()
        single.load_state_dict(all_weights)
        alone = optimizer_of(single, "apollo")
        set_optimizer_state_dict(single, alone, all_state)
        found["single"] = train(single, alone, range(9, 15))
    return found


def refused(mesh: DeviceMesh) -> list[str]:
    """What Apollo says to parameters that are spread in other ways."""
    column = nn.Parameter(distribute_tensor(torch.ones(4, 6), mesh, [Shard(1)]))
    column.grad = distribute_tensor(torch.ones(4, 6), mesh, [Shard(1)])
    flat = FullyShardedDataParallel(nn.Linear(4, 6), use_orig_params=True, device_id=torch.device("cpu"))
    flat(torch.ones(2, 4)).sum().backward()
    said = []
    for params in ([column], list(flat.parameters())):
        try:
            Apollo(params).step()
        except UsageError as error:
            said.append(str(error))
    return said


def main(folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    found = {
        "curves": curves(mesh, rank, ranks),
        "shapes": {
            f"{kind} {weights} {dtype}": shapes(ranks, kind, dtype, weights, replicas=kind == "mini")
            for kind in KINDS
            for dtype, weights in ((torch.float32, "nearest"), (torch.bfloat16, "compensated"))
        },
        "checkpoints": checkpoints(mesh, folder, rank, ranks),
        "refused": refused(mesh),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may still be waiting, and abort the interpreter's own way out


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
