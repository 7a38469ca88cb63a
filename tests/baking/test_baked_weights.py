"""Baked weights are made as they are written: nothing is kept, and what is made is what was announced."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from personality.baking.bake import bake
from personality.baking.baked_weights import BakedWeights
from personality.baking.route import Change
from personality.builds.writer import Progress, write_checkpoint
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.steering.injection import Injection


class Counted(Checkpoint):
    """A checkpoint that knows which of its tensors are still held by somebody."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.given: list[weakref.ref[Tensor]] = []

    def tensor(self, name: str) -> Tensor:
        copy = super().tensor(name).clone()
        self.given.append(weakref.ref(copy))
        return copy

    def held(self) -> int:
        return sum(ref() is not None for ref in self.given)


@pytest.mark.parametrize("kind", ["llama", "llama-bias", "qwen3"])
def test_no_tensor_outlives_its_writing(kind: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = Counted(make_checkpoint(kind))
    baked = bake(source, [Injection(1, torch.ones(32), "all", "add", label="a@1")], torch.bfloat16)
    assert source.given == []  # planning reads no weights
    held = []

    def look(progress: Progress) -> None:
        held.append(source.held())

    (tmp_path / "out").mkdir()
    write_checkpoint(baked, tmp_path / "out", config=baked.plan.config, on_progress=look)
    assert len(held) == len(baked.specs)
    assert max(held) <= 1
    assert bool(source.given) == (kind != "llama")  # zeros and vectors alone need no weights


def test_what_is_made_must_be_what_was_announced(make_checkpoint: Callable[..., Path]) -> None:
    baked = bake(
        Checkpoint(make_checkpoint("llama")), [Injection(1, torch.ones(32), "all", "add", label="a@1")], torch.bfloat16
    )
    name = "model.layers.1.mlp.down_proj.bias"
    for wrong in (torch.zeros(31, dtype=torch.bfloat16), torch.zeros(32)):
        broken = {name: Change(baked.plan.changes[name].spec, lambda weights, made=wrong: made)}  # type: ignore[misc]
        with pytest.raises(ValueError, match=r"announced BF16 \[32\], made"):
            BakedWeights(baked, replace(baked.plan, changes=broken)).tensor(name)
