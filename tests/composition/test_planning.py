"""48 layers of 128 experts, each tensor shrunk to a few bytes: what is paid per tensor before any is read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from personality.builds.writer import shards_of
from personality.composition.composer import Composer
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.personality_record import LayerRange, Personality, Use
from personality.manifests.tensor_file import TensorFile, TensorSpec, TensorWriter, aligned_order
from personality.vectors import delta
from personality.vectors.checkpoint import INDEX, Checkpoint

LAYERS, EXPERTS, SHARDS = 48, 128, 16
TENSORS = 3 + LAYERS * (9 + 3 * EXPERTS)


def qwen3_moe() -> Iterator[TensorSpec]:
    """Names as Qwen3-30B-A3B has them."""
    yield TensorSpec("model.embed_tokens.weight", "BF16", (16, 8))
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            yield TensorSpec(f"{prefix}.self_attn.{name}_proj.weight", "BF16", (8, 8))
        for name in ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"):
            yield TensorSpec(f"{prefix}.{name}.weight", "BF16", (8,))
        yield TensorSpec(f"{prefix}.mlp.gate.weight", "BF16", (EXPERTS, 8))
        for expert in range(EXPERTS):
            for name, shape in (("gate", (4, 8)), ("up", (4, 8)), ("down", (8, 4))):
                yield TensorSpec(f"{prefix}.mlp.experts.{expert}.{name}_proj.weight", "BF16", shape)
    yield TensorSpec("model.norm.weight", "BF16", (8,))
    yield TensorSpec("lm_head.weight", "BF16", (16, 8))


def write(path: Path, specs: list[TensorSpec]) -> None:
    """Zeros: what the tensors hold is never read."""
    with path.open("wb") as file:
        writer = TensorWriter(file, specs)
        for spec in specs:
            writer.write(spec.name, bytes(spec.nbytes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in 16 shards, and beside it a vector that changes every tensor of it."""
    root = tmp_path_factory.mktemp("planning")
    specs = list(qwen3_moe())
    assert len(specs) == TENSORS == 18_867
    weight_map = {}
    for number in range(SHARDS):
        shard = specs[number::SHARDS]
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        write(root / name, shard)
        weight_map.update({spec.name: name for spec in shard})
    (root / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (root / "vector").mkdir()
    write(root / "vector/vector.safetensors", specs)
    return root


@pytest.mark.parametrize("layers", [None, LayerRange(first=8, last=39)])
def test_eighteen_thousand_tensors_are_planned_at_once(folder: Path, layers: LayerRange | None) -> None:
    """0.25 s on one core that nothing else uses; the bound leaves room for a machine that is busy."""
    use = Use(behavior="b", number=1, vector="0" * 64, scale=0.5, layers=layers)
    personality = Personality(base=BaseIdentity(source="base", fingerprint="0" * 64), uses=(use,))
    started = time.process_time()
    base = Checkpoint(folder)
    vector = delta.DeltaVector(TensorFile(folder / "vector/vector.safetensors"), delta.header())
    composer = Composer(base, personality, {use.vector: vector})
    acting = composer.acting
    shards = [aligned_order(shard) for shard in shards_of(list(composer.specs.values()), 100_000)]
    seconds = time.process_time() - started
    names = [spec.name for shard in shards for spec in shard]
    assert sorted(names) == sorted(base.specs)
    within = range(LAYERS) if layers is None else range(layers.first, layers.last + 1)
    assert acting == {"b@1": {*within} if layers else {None, *within}}
    assert len(composer.touched) == len(within) * (9 + 3 * EXPERTS) + (0 if layers else 3)
    assert seconds < 3
