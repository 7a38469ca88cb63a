"""Checkpoints of a run under way: trained weights, optimizer, and a mark that all of it was written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from personality.manifests.atomic import sync, write_bytes
from personality.manifests.errors import CorruptError

WEIGHTS = "trained.safetensors"
METER = "meter.safetensors"
_MARK = "progress.json"
_PICKLED = ("optimizer.pt", "scheduler.pt")  # read with weights_only
_NAME = re.compile(r"checkpoint-(\d+)")
_KEPT = 2  # the newest, and the one before in case the newest turns out to be damaged


def step_of(checkpoint: Path) -> int:
    """Steps that had been taken when a checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def newest(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end; None when there is none.

    Args:
        folder: of one phase of a run.
    """
    return max(_written(folder), key=step_of, default=None)


def newest_sound(folder: Path) -> Path | None:
    """The latest checkpoint that can be read from end to end; damaged ones are removed.

    Args:
        folder: of one phase of a run.
    """
    for checkpoint in sorted(_written(folder), key=step_of, reverse=True):
        try:
            read_progress(checkpoint)
            for path in checkpoint.iterdir():
                if path.suffix == ".safetensors":
                    load_file(str(path))
                elif path.name in _PICKLED:
                    torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # each format has its own way of saying that bytes are missing
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def _written(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and (path / _MARK).is_file()]


def mark_written(checkpoint: Path, progress: dict[str, Any]) -> None:
    """Declare a checkpoint complete, and drop all but the newest ones beside it.

    Args:
        checkpoint: its folder; everything else in it is written.
        progress: JSON-able, what the run needs besides weights and optimizer to go on.
    """
    for path in checkpoint.iterdir():
        sync(path)  # the mark must never be on the disk before what it vouches for
    write_bytes(checkpoint / _MARK, json.dumps(progress).encode())
    others = [path for path in checkpoint.parent.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    for path in sorted(others, key=step_of)[:-_KEPT]:
        shutil.rmtree(path)


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """What `mark_written` got.

    Raises:
        CorruptError: it cannot be read.
    """
    try:
        return dict(json.loads((checkpoint / _MARK).read_bytes()))
    except ValueError as error:
        raise CorruptError(f"{checkpoint / _MARK} is damaged: {error}", f"remove the folder {checkpoint}") from error


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require gradients, on the CPU.

    Args:
        model: in training.

    Returns:
        Tensors by the model's own parameter names.
    """
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def write_trained(weights: dict[str, Tensor], meter: dict[str, Tensor], checkpoint: Path) -> None:
    """Write weights, and what the lost-update meter remembers, into a checkpoint's folder.

    Args:
        weights: from `trained_weights`.
        meter: from `Apollo.meter_state`; empty where there is none.
        checkpoint: its folder.
    """
    checkpoint.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(checkpoint / WEIGHTS))
    save_file(meter, str(checkpoint / METER))


def read_meter(checkpoint: Path) -> dict[str, Tensor]:
    """What `write_trained` got as the meter's memory."""
    found: dict[str, Tensor] = load_file(str(checkpoint / METER))
    return found


@torch.no_grad()
def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights into a model.

    Args:
        model: of the same architecture, with the same parameters requiring gradients.
        checkpoint: its folder.

    Raises:
        CorruptError: the weights are damaged or belong to another run.
    """
    path = checkpoint / WEIGHTS
    hint = f"remove {checkpoint.parent} and give the same command again"
    try:
        weights = load_file(str(path))
    except Exception as error:  # safetensors raises its own kinds and plain OSError
        raise CorruptError(f"{path} cannot be read: {error}", hint) from error
    wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in wanted.items()}:
        raise CorruptError(f"{path} holds the weights of another run", hint)
    for name, parameter in wanted.items():
        parameter.copy_(weights[name])
