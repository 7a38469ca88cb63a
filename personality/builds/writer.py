"""Writing a checkpoint as a model folder that transformers and vLLM load: shards, index, config, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personality.baking.weights import Weights
from personality.builds.reuse import OtherBuild
from personality.composition.engine import Engine
from personality.manifests.atomic import write_bytes, writing
from personality.manifests.canonical import pretty_json
from personality.manifests.errors import PersonaError
from personality.manifests.hashed_stream import HashedStream
from personality.manifests.tensor_file import TensorSpec, TensorWriter, aligned_order, digest_file
from personality.serving.steering_table import STEERING_FILE
from personality.vectors.checkpoint import INDEX, SINGLE

CONFIG = "config.json"
DEFAULT_SHARD_BYTES = 5_000_000_000
BUILD_RECORD = "persona-build.json"
CERTIFICATE = "persona-certificate.json"
"""What a written checkpoint and an export say of themselves; never taken over from a base that was one itself."""
_OWN = ("README.md", INDEX, BUILD_RECORD, CERTIFICATE, STEERING_FILE)
# Weights are composed, the base's card is not ours, and code is never carried along.
_NOT_COMPANIONS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf", ".py"}


@dataclass(frozen=True)
class Progress:
    """How far a long operation is: `done` of `total` bytes, and what it works on."""

    done: int
    total: int
    what: str


def shards_of(specs: list[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Spread tensors over shards of at most `shard_bytes` (a larger tensor has a shard of its own), in order."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def write_checkpoint(
    weights: Weights,
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    mode: int = 0o644,
    engine: Engine | None = None,
    other: OtherBuild | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, str]:
    """Make every tensor and write the model folder. Blocks are read and composed while the ones before are written and
    hashed; memory holds a few of them.

    Args:
        weights: what to write, such as a composer.
        folder: an empty folder.
        config: content of config.json; None for the base's own, byte for byte.
        shard_bytes: greatest size of a weights file.
        mode: permission bits of the weights files.
        engine: whose threads to use; None for the usual ones.
        other: another version's build, from which to take what is the same; None to make everything.
        on_progress: called after each tensor.

    Returns:
        SHA-256 by file name.

    Raises:
        PersonaError: when the disk is too small (checked before anything is written) or full.
    """
    engine = engine or Engine()
    specs = list(weights.specs.values())
    total = sum(spec.nbytes for spec in specs)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise PersonaError(
            f"{folder} has {free / 1e9:.2f} GB free, the checkpoint takes {total / 1e9:.2f} GB",
            "free some room (`persona gc` removes builds), or choose another folder",
        )
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    shards = shards_of(specs, shard_bytes)
    done = 0
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        ordered = aligned_order(shard)
        weight_map |= dict.fromkeys((spec.name for spec in ordered), name)
        if other and (digest := other.take_shard(folder / name, ordered)):
            digests[name] = digest
            done += sum(spec.nbytes for spec in ordered)
            if on_progress:
                on_progress(Progress(done, total, name))
            continue
        with writing(folder / name, mode=mode) as file, HashedStream(file) as stream, engine.running():
            writer = TensorWriter(stream, ordered)
            for spec in ordered:
                taken = other.blocks_of(spec.name) if other else None
                writer.write_blocks(spec.name, taken or weights.blocks_of(spec.name))
                done += spec.nbytes
                if on_progress:
                    on_progress(Progress(done, total, spec.name))
            digests[name] = writer.finish()
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_bytes(folder / INDEX, pretty_json(index))
        digests[INDEX] = digest_file(folder / INDEX)
    digests.update(_copy_companions(weights.folder, folder))
    if config is not None:
        write_bytes(folder / CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
        digests[CONFIG] = digest_file(folder / CONFIG)
    return digests


def _copy_companions(source: Path, target: Path) -> dict[str, str]:
    """What lies beside the weights, byte for byte: configuration, tokenizer, chat templates, processors, licence."""
    paths = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
    paths += sorted(source.glob("additional_chat_templates/*.jinja"))
    digests = {}
    for path in paths:
        name = path.relative_to(source).as_posix()
        if path.suffix in _NOT_COMPANIONS or name in _OWN:
            continue
        write_bytes(target / name, path.read_bytes())
        digests[name] = digest_file(target / name)
    return digests
