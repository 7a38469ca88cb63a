"""Random PEFT adapters for a tiny base, and a repository that uses them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from personality.manifests.repository import Repository
from tests.conftest import run_persona

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def random_adapter(base: Path, folder: Path, *, rank: int, targets: Sequence[str] = LINEAR, seed: int = 0) -> Path:
    """Write a LoRA adapter with random factors on both sides, as `save_pretrained` writes it."""
    import transformers
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(targets), init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)
    return folder


def to_float32(base: Path) -> Path:
    """Widen a checkpoint's tensors, so that composing rounds nothing away."""
    for path in base.glob("*.safetensors"):
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    return base


def using(root: Path, *uses: tuple[str, Path, str], base: str = "base") -> Repository:
    """A repository in a folder that uses imported vectors.

    Args:
        root: its folder, where the base already lies.
        uses: name, what to import, and options of `persona add` for each.
        base: the base's folder in it.
    """
    commands = [["init", "--base", base]]
    for name, source, options in uses:
        commands += [["import", name, str(source)], ["add", name, *options.split()]]
    for command in commands:
        code, _, err = run_persona(*command, cwd=root)
        assert code == 0, err
    return Repository(root)
