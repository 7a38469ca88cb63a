"""Quantized checkpoints as their publishers' tools write them, with tiny tensors of the same names and dtypes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from personality.manifests.errors import IncompatibleError
from personality.manifests.repository import Repository
from personality.manifests.vector_store import stored_ids
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.quantization import check_not_quantized
from tests.conftest import fine_tuned, run_persona

Q = "model.layers.0.self_attn.q_proj"
EXPERTS = "model.layers.0.mlp.experts"
Make = Callable[..., Path]


def integers(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.ones(shape, dtype=dtype)


FORMATS: dict[str, tuple[dict[str, Tensor], dict[str, Any] | None, str, str]] = {
    "gptq": (
        {
            f"{Q}.qweight": integers(torch.int32, 4, 32),
            f"{Q}.qzeros": integers(torch.int32, 1, 4),
            f"{Q}.scales": torch.ones(1, 32).half(),
            f"{Q}.g_idx": integers(torch.int32, 32),
        },
        {"quant_method": "gptq", "bits": 4},
        "is quantized (gptq): `model.layers.0.self_attn.q_proj.qweight` is I32",
        "16-bit model",
    ),
    "awq without a word in config.json": (
        {f"{Q}.qweight": integers(torch.int32, 32, 4), f"{Q}.scales": torch.ones(1, 32).half()},
        None,
        "is quantized (gptq or awq)",
        "16-bit model",
    ),
    "bitsandbytes, 4 bits": (
        {
            f"{Q}.weight": integers(torch.uint8, 512, 1),
            f"{Q}.weight.absmax": torch.ones(16),
            f"{Q}.weight.quant_map": torch.ones(16),
            f"{Q}.weight.quant_state.bitsandbytes__nf4": integers(torch.uint8, 80),
        },
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "is quantized (bitsandbytes)",
        "16-bit model",
    ),
    "bitsandbytes, 8 bits": (
        {f"{Q}.weight": integers(torch.int8, 32, 32), f"{Q}.SCB": torch.ones(32)},
        None,
        "is quantized (bitsandbytes)",
        "16-bit model",
    ),
    "compressed-tensors, packed": (
        {
            f"{Q}.weight_packed": integers(torch.int32, 32, 4),
            f"{Q}.weight_scale": torch.ones(32, 1).bfloat16(),
            f"{Q}.weight_shape": torch.tensor([32, 32]),
        },
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "is quantized (compressed-tensors)",
        "16-bit model",
    ),
    "fp8 in blocks": (
        {f"{Q}.weight": torch.ones(32, 32).to(torch.float8_e4m3fn), f"{Q}.weight_scale_inv": torch.ones(1, 1)},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "is quantized (fp8)",
        "FineGrainedFP8Config(dequantize=True)",
    ),
    "mxfp4": (
        {
            f"{EXPERTS}.gate_up_proj_blocks": integers(torch.uint8, 4, 96, 1, 16),
            f"{EXPERTS}.gate_up_proj_scales": integers(torch.uint8, 4, 96, 1),
        },
        {"quant_method": "mxfp4"},
        "is quantized (mxfp4)",
        "Mxfp4Config(dequantize=True)",
    ),
    "mxfp4, de-quantized under its packed names": (
        {f"{EXPERTS}.gate_up_proj_blocks": torch.ones(4, 32, 96).bfloat16()},
        None,
        "is quantized (mxfp4)",
        "save_original_format=False",
    ),
    "a method that is not known here": (
        {f"{Q}.trellis": integers(torch.int16, 32, 8)},
        {"quant_method": "exl3"},
        "is quantized (exl3)",
        "16-bit model",
    ),
}


def quantized(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None) -> Path:
    """Put these in place of the layer's own weights."""
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if name != f"{Q}.weight"}
    save_file({**kept, **tensors}, path, {"format": "pt"})
    if config is not None:
        found = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**found, "quantization_config": config}))
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_base_is_refused_and_nothing_is_made(make_checkpoint: Make, tmp_path: Path, name: str) -> None:
    tensors, config, message, hint = FORMATS[name]
    base = quantized(make_checkpoint("llama"), tensors, config)
    root = tmp_path / "repository"
    code, _, err = run_persona("init", "--base", str(base), str(root))
    assert code == 1
    assert message in " ".join(err.split())
    assert hint in " ".join(err.split())
    assert not root.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_fine_tune_is_refused_and_nothing_is_stored(
    make_checkpoint: Make, tmp_path: Path, name: str
) -> None:
    tensors, config, message, _ = FORMATS[name]
    base = make_checkpoint("llama")
    tuned = quantized(fine_tuned(base, tmp_path / "tuned"), tensors, config)
    root = tmp_path / "repository"
    assert run_persona("init", "--base", str(base), str(root))[0] == 0
    code, _, err = run_persona("import", "polite", str(tuned), "-C", str(root))
    assert code == 1
    assert message in " ".join(err.split())
    repository = Repository(root)
    assert stored_ids(repository) == {}
    assert repository.manifests() == []
    assert list(root.rglob(".tmp-*")) == []


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "mxfp4"},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    ],
)
def test_a_config_that_only_speaks_of_quantization(
    make_checkpoint: Make, tmp_path: Path, config: dict[str, Any]
) -> None:
    """Written by a trainer that loaded the model quantized, or left over: the tensors are whole."""
    base = quantized(make_checkpoint("llama"), {f"{Q}.weight": torch.ones(32, 32).bfloat16()}, config)
    assert check_not_quantized(Checkpoint(base)) == config["quant_method"]
    code, _, err = run_persona("init", "--base", str(base), str(tmp_path / "repository"))
    assert code == 0, err
    assert f"speaks of quantization ({config['quant_method']})" in " ".join(err.split())


def test_integers_that_a_model_has_anyway(make_checkpoint: Make) -> None:
    """Buffers, a table of positions, scales beside whole weights."""
    buffers = {
        f"{Q}.weight": torch.ones(32, 32).bfloat16(),
        f"{Q}.weight_scale": torch.ones(1),
        "model.vision.position_ids": torch.arange(16).reshape(1, 16),
        "model.layers.0.mlp.tid2eid": integers(torch.int32, 97, 2),
        "model.mask": torch.ones(4, 4, dtype=torch.bool),
    }
    assert check_not_quantized(Checkpoint(quantized(make_checkpoint("llama"), buffers, None))) == ""


def test_the_way_out_of_mxfp4_and_fp8(tmp_path: Path) -> None:
    """What the hint says is carried out: transformers' own de-quantization gives a base that is accepted."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }

    def experts(name: str, tensor: Tensor) -> dict[str, Tensor]:
        count, columns, rows = tensor.shape
        return {
            f"{name}_blocks": torch.randint(0, 256, (count, rows, columns // 32, 16), dtype=torch.uint8),
            f"{name}_scales": torch.full((count, rows, columns // 32), 120, dtype=torch.uint8),
        }

    def blocks(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {name: tensor.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}

    oss = transformers.GptOssConfig(
        **sizes, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"], sliding_window=16
    )
    cases: list[tuple[str, Any, Any, Any, Any]] = [
        ("mxfp4", oss, experts, lambda name: name.endswith("_proj"), transformers.Mxfp4Config(dequantize=True)),
        (
            "fp8",
            transformers.Qwen3Config(**sizes),
            blocks,
            lambda name: name.endswith("_proj.weight"),
            transformers.FineGrainedFP8Config(dequantize=True),
        ),
    ]
    for method, config, pack, packed, way_out in cases:
        folder = tmp_path / method
        transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        whole = load_file(folder / "model.safetensors")
        tensors: dict[str, Tensor] = {}
        for name, tensor in whole.items():
            tensors |= pack(name, tensor) if packed(name) else {name: tensor}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        stated = json.loads((folder / "config.json").read_text())
        stated["quantization_config"] = {
            "quant_method": method,
            **({"weight_block_size": [128, 128]} if method == "fp8" else {}),
        }
        (folder / "config.json").write_text(json.dumps(stated))
        with pytest.raises(IncompatibleError, match=rf"is quantized \({method}\)") as caught:
            check_not_quantized(Checkpoint(folder))
        assert type(way_out).__name__ in caught.value.hint
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=way_out
        )
        model.save_pretrained(tmp_path / f"{method}-whole", save_original_format=False)
        found = Checkpoint(tmp_path / f"{method}-whole")
        assert check_not_quantized(found) == ""
        assert {name: (spec.dtype, spec.shape) for name, spec in found.specs.items()} == {
            name: ("BF16", tuple(tensor.shape)) for name, tensor in whole.items()
        }
