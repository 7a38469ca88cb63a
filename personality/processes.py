"""The processes that share a run under `accelerate launch` or `torchrun`; alone, there is one."""

from __future__ import annotations

import os
from typing import Any

from personality.manifests.errors import UsageError


def rank() -> int:
    """Number of this process, from 0; only process 0 writes to the repository and to the terminal."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meet the other processes and take this one's device; nothing happens when there is one process only.

    Raises:
        UsageError: the processes are to share one model in shards.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true") or os.environ.get(
        "ACCELERATE_USE_DEEPSPEED", ""
    ).lower() in ("1", "true"):
        raise UsageError(
            "training with a sharded model (FSDP, DeepSpeed) is not available: every process needs the whole model",
            "launch without it (`accelerate launch --multi_gpu`), or save memory with `--lora` or `--weights "
            "bf16-compensated`",
        )
    if world() > 1:
        _state()


def wait_for_all() -> None:
    """Go on when every process has come this far."""
    if world() > 1:
        _state().wait_for_everyone()


def leave() -> None:
    """Part from the other processes; nothing happens when there is one process only."""
    if world() > 1:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
