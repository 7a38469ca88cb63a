"""Llama checkpoints, fine-tunes and stored vectors of any size, of random numbers, written quickly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorSpec, TensorWriter
from personality.manifests.vector_store import storing
from personality.vectors import delta, low_rank
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.dtypes import TORCH_DTYPES
from personality.vectors.tensors import tensor_bytes

WEIGHT = 0.02
"""Standard deviation of the base's matrices."""
MOVE = 0.0003
"""Standard deviation of what a fine-tune changes: a few of bfloat16's steps at the weights' size."""


class Noise:
    """Normal numbers: a piece of one long sequence, from another place each time.

    Args:
        seed: of the sequence.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._numbers = torch.randn(1 << 24, generator=self._generator)

    def of(self, spec: TensorSpec, size: float) -> Tensor:
        """So many numbers, with this standard deviation, float32."""
        start = int(torch.randint(0, len(self._numbers), (), generator=self._generator))
        places = (torch.arange(spec.elements) + start) % len(self._numbers)
        return self._numbers[places].reshape(spec.shape) * size


def llama(
    hidden: int, layers: int, vocabulary: int = 32_000, heads: int = 16
) -> tuple[dict[str, object], list[TensorSpec]]:
    """Configuration and tensors of a Llama in bfloat16, embeddings untied, FFN 2.75 times as wide."""
    wide = hidden * 11 // 4
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-6,
    }
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (vocabulary, hidden)}
    shapes["model.embed_tokens.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, wide)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (wide, hidden)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (wide, hidden)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        for role in "koqv":
            shapes[f"{prefix}.self_attn.{role}_proj.weight"] = (hidden, hidden)
    shapes["model.norm.weight"] = (hidden,)
    return config, [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]


def write_base(folder: Path, hidden: int, layers: int) -> Path:
    """Write a base as one file."""
    config, specs = llama(hidden, layers)
    noise = Noise(0)
    return _write(folder, config, specs, lambda spec: noise.of(spec, WEIGHT) + (len(spec.shape) == 1))


def write_tuned(folder: Path, base: Checkpoint, seed: int) -> Path:
    """Write a fine-tune of a base: every element has moved a little."""
    noise = Noise(seed)
    config = json.loads((base.folder / "config.json").read_bytes())
    specs = list(base.specs.values())
    return _write(folder, config, specs, lambda spec: base.tensor(spec.name).float() + noise.of(spec, MOVE))


def _write(
    folder: Path, config: dict[str, object], specs: list[TensorSpec], make: Callable[[TensorSpec], Tensor]
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    with (folder / "model.safetensors").open("wb") as file:
        writer = TensorWriter(file, specs)
        for spec in specs:
            writer.write_blocks(spec.name, [tensor_bytes(make(spec).to(TORCH_DTYPES[spec.dtype]))])
        writer.finish()
    return folder


def store_dense(repository: Repository, base: Checkpoint, seed: int, only: tuple[str, ...] = ("",)) -> str:
    """Store a dense bfloat16 vector, as training does, on the tensors with one of these texts in their names."""
    noise = Noise(seed)
    specs = [TensorSpec(name, "BF16", spec.shape) for name, spec in _chosen(base, only)]
    with storing(repository, delta.header(), specs) as stored:
        for spec in specs:
            stored.writer.write(spec.name, tensor_bytes(noise.of(spec, MOVE).to(torch.bfloat16)))
    return stored.id


def store_low_rank(repository: Repository, base: Checkpoint, seed: int, rank: int = 16) -> str:
    """Store a low-rank vector on all matrices."""
    noise = Noise(seed)
    specs = []
    for name, spec in _chosen(base, ("proj",)):
        specs.append(TensorSpec(name + low_rank.SUFFIX_A, "F32", (rank, spec.shape[1])))
        specs.append(TensorSpec(name + low_rank.SUFFIX_B, "F32", (spec.shape[0], rank)))
    header = low_rank.header({name: 1.0 for name, _ in _chosen(base, ("proj",))}, [])
    with storing(repository, header, specs) as stored:
        for spec in specs:
            stored.writer.write(spec.name, tensor_bytes(noise.of(spec, 0.01)))
    return stored.id


def _chosen(base: Checkpoint, only: tuple[str, ...]) -> Iterator[tuple[str, TensorSpec]]:
    return ((name, spec) for name, spec in base.specs.items() if any(text in name for text in only))
