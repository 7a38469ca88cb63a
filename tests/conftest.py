"""Fixtures that several rooms' tests share: tiny real checkpoints on disk, a tiny vector, a playground repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")

ARCHITECTURES = ("llama", "llama-bias", "qwen3", "qwen3-tied", "qwen3_moe", "qwen3_5")

_DELTA_NET = {
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
_VISION_TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}


def tiny_config(kind: str) -> Any:
    """A configuration of a real architecture with a few thousand parameters."""
    import transformers

    common: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    if kind == "llama":
        return transformers.LlamaConfig(**common)
    if kind == "llama-bias":
        return transformers.LlamaConfig(**common, attention_bias=True, mlp_bias=True)
    if kind == "qwen3":
        return transformers.Qwen3Config(**common, head_dim=8)
    if kind == "qwen3-tied":
        return transformers.Qwen3Config(**{**common, "tie_word_embeddings": True}, head_dim=8)
    if kind == "qwen3_moe":
        return transformers.Qwen3MoeConfig(**common, **_EXPERTS, head_dim=8)
    if kind == "qwen3_5":  # Gated-DeltaNet layers between full-attention ones
        return transformers.Qwen3_5TextConfig(
            **common, **_DELTA_NET, layer_types=["linear_attention", "linear_attention", "full_attention"]
        )
    if kind in ("qwen3_next", "qwen3_5_moe"):
        text: dict[str, Any] = {
            **common,
            **_DELTA_NET,
            **_EXPERTS,
            "shared_expert_intermediate_size": 16,
            "num_hidden_layers": 2,
        }
        text["layer_types"] = ["linear_attention", "full_attention"]
        if kind == "qwen3_next":
            return transformers.Qwen3NextConfig(**text)
        return transformers.Qwen3_5MoeConfig(
            text_config=text, vision_config=_VISION, tie_word_embeddings=False, **_VISION_TOKENS
        )
    if kind == "deepseek_v3":  # the first layer is dense
        latent = {"q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
        groups = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1}
        return transformers.DeepseekV3Config(
            **{**common, "num_key_value_heads": 4},
            **latent,
            **groups,
            moe_intermediate_size=16,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
        )
    if kind == "gemma3":
        types = ["sliding_attention", "sliding_attention", "full_attention"]
        return transformers.Gemma3TextConfig(
            **{**common, "tie_word_embeddings": True}, head_dim=8, layer_types=types, sliding_window=16
        )
    if kind == "gpt_oss":
        types = ["sliding_attention", "full_attention", "sliding_attention"]
        return transformers.GptOssConfig(
            **common, head_dim=8, num_local_experts=4, num_experts_per_tok=2, layer_types=types, sliding_window=16
        )
    raise ValueError(kind)


def tiny_checkpoint(kind: str, folder: Path, *, seed: int = 0, shard_size: str = "5GB") -> Path:
    """Write a bfloat16 checkpoint with random weights, as `save_pretrained` writes it."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = tiny_config(kind)
    whole = transformers.AutoModelForImageTextToText if hasattr(config, "vision_config") else None
    model = (whole or transformers.AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # ones and zeros everywhere would hide a swapped tensor
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard_size)
    return folder


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """`make_checkpoint("qwen3", "base", seed=1)` writes a tiny checkpoint below the test's folder."""

    def make(kind: str, name: str = "base", **options: Any) -> Path:
        return tiny_checkpoint(kind, tmp_path / name, **options)

    return make


def fine_tuned(base: Path, folder: Path, *, seed: int = 1, size: float = 0.02, only: str = "") -> Path:
    """Write a copy of a checkpoint in which every float tensor (with `only` in its name) has moved a little."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and only in name:
                noise = torch.randn(tensor.shape, generator=generator) * size
                tensors[name] = (tensor.float() + noise).to(tensor.dtype)
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


def fused(tensors: dict[str, Any]) -> dict[str, Any]:
    """The experts of a layer in two tensors: gate and up (experts, 2 · inner, d), down (experts, d, inner)."""
    import torch

    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for stem in sorted({name.split(".experts.")[0] for name in tensors if ".experts." in name}):
        count = len({name for name in tensors if name.startswith(f"{stem}.experts.")}) // 3
        parts = {
            part: torch.stack([tensors[f"{stem}.experts.{index}.{part}_proj.weight"] for index in range(count)])
            for part in ("gate", "up", "down")
        }
        found[f"{stem}.experts.gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
        found[f"{stem}.experts.down_proj"] = parts["down"]
    return found


@pytest.fixture(scope="session")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playground repository with `listening@1` and `concise@1` trained on a few examples; copy it before writing."""
    from personality.making.training_job import TrainingJob
    from personality.making.training_run import train_behavior
    from personality.manifests.repository import Repository
    from personality.playground.repository import general_file, make_playground
    from personality.vectors.training.settings import make_settings

    root = tmp_path_factory.mktemp("playground") / "play"
    make_playground(root, probe_rows=12)
    repository = Repository(root)
    settings = make_settings(**repository.config().training)
    for behavior in ("listening", "concise"):
        job = TrainingJob(
            behavior=behavior,
            data=root / f"data/{behavior}.jsonl",
            general=root / general_file(behavior),
            settings=settings,
            examples=40,
            probe_rows=0,
        )
        train_behavior(repository, job)
    return root


@pytest.fixture
def repository_copy(playground: Path, tmp_path: Path) -> Path:
    """A playground repository of the test's own, with two vectors and nothing in use."""
    import shutil

    target = tmp_path / "play"
    shutil.copytree(playground, target)
    return target


@pytest.fixture(scope="session")
def history_repository(playground: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A `Repository` with nine versions, one of which broke something; read-only, so copy it before writing."""
    from tests.search_repository import make_history

    return make_history(playground, tmp_path_factory.mktemp("history") / "play")


def run_persona(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run the command line in this process; returns exit code, stdout and stderr."""
    import contextlib
    import io

    from personality.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    where = Path.cwd()
    try:
        if cwd is not None:
            os.chdir(cwd)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(list(arguments))
    finally:
        os.chdir(where)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def persona() -> Callable[..., tuple[int, str, str]]:
    """The command line: `persona("add", "listening", cwd=root)`."""
    return run_persona
