"""`import`: a fine-tuned checkpoint or a LoRA adapter becomes a vector of this base."""

from __future__ import annotations

import time
from pathlib import Path

from personality.composition.opening import base_of
from personality.environment import tool_versions
from personality.making.reencoding import trim_limit
from personality.making.vector_records import record_vector
from personality.manifests.errors import IncompatibleError, UsageError
from personality.manifests.manifest import Making, Manifest
from personality.manifests.names import check_behavior_name
from personality.manifests.repository import Repository
from personality.vectors.adapter import is_adapter, store_adapter
from personality.vectors.base import chat_template, model_config
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.difference import store_difference
from personality.vectors.encoders import OnTensor
from personality.vectors.encoding import Encoding, store_encoded
from personality.vectors.fine_tune import FineTune
from personality.vectors.fitted import fitted
from personality.vectors.quantization import check_not_quantized

# Fields of config.json that say how a run loaded or saved the model.
_NOT_THE_MODEL = {"use_cache", "dtype", "torch_dtype", "architectures"}


def import_vector(
    repository: Repository,
    behavior: str,
    path: Path,
    encoding: Encoding | None = None,
    *,
    on_tensor: OnTensor | None = None,
) -> tuple[Manifest, bool, tuple[str, ...]]:
    """Store what a fine-tune changed.

    Args:
        repository: where.
        behavior: the behavior that the vector is of.
        path: folder of a checkpoint (one file or sharded) or of a PEFT LoRA adapter, or one safetensors file's folder.
        encoding: to keep a checkpoint's difference in; None for `delta`.
        on_tensor: told of the tensors where an encoding was asked for.

    Returns:
        The manifest, whether it is new, and notes on how the files were read.

    Raises:
        NotFoundError, CorruptError, IncompatibleError: see `store_difference`, `store_adapter` and `store_encoded`.
        UsageError: another encoding for an adapter.
    """
    check_behavior_name(behavior)
    started = time.monotonic()
    chosen = encoding if encoding is not None and encoding.name != "delta" else None
    if encoding is not None and is_adapter(path):
        raise UsageError(
            f"{path} is an adapter, which is kept as it is: `low-rank`, at its own rank",
            f"leave `--encoding` out; `persona encode {behavior} --as {encoding.name}` changes it afterwards",
        )
    base = base_of(repository)
    more: tuple[str, ...] = tuple(_other_differences(base.folder, path))
    with repository.writing():
        if is_adapter(path):
            stored = store_adapter(repository, base, path)
        else:
            checkpoint = Checkpoint(path)
            check_not_quantized(checkpoint)
            tuned, taken = fitted(base, checkpoint)
            more = (*taken, *more)
            if chosen is None:
                stored = store_difference(repository, base, tuned)
            else:
                source = FineTune(base, tuned)
                limit = trim_limit(source, chosen)
                stored = store_encoded(repository, base, source, chosen, limit=limit, on_tensor=on_tensor)
        notes = (*stored.notes, *more)
        making = Making(
            how="import-lora" if is_adapter(path) else "import-checkpoint",
            source=path.resolve().name,
            settings=chosen.settings() if chosen is not None else {},
            tools=tool_versions(),
            seconds=round(time.monotonic() - started, 3),
        )
        manifest, new = record_vector(
            repository,
            behavior,
            repository.config().base,
            stored,
            making,
            command=f"import {behavior} {path.name}",
        )
    return manifest, new, notes


def _other_differences(base: Path, tuned: Path) -> list[str]:
    """What a fine-tune has otherwise than the base besides its weights; a vector cannot carry that.

    Raises:
        IncompatibleError: when it is another kind of model.
    """
    if not (tuned / "config.json").is_file():
        return []
    notes = []
    old, new = model_config(base), model_config(tuned)
    kinds = old.get("model_type"), new.get("model_type")
    if kinds[1] == (old.get("text_config") or {}).get("model_type") != kinds[0]:
        # A class for text took the language model out of one that also sees: only that part can be compared.
        old = {**old["text_config"], "model_type": kinds[1]}
        new = {key: value for key, value in new.items() if key in old}
        notes.append(f"it is a {kinds[1]} model, the language model of the base's {kinds[0]}")
    elif kinds[0] != kinds[1]:
        raise IncompatibleError(
            f"{tuned} is a {kinds[1]} model, the base is a {kinds[0]} model",
            "import a fine-tune of this base; if only config.json is wrong, mend that",
        )
    keys = sorted(key for key in {*old, *new} - _NOT_THE_MODEL if old.get(key) != new.get(key))
    if keys:
        notes.append(f"its config.json differs in {', '.join(keys)}; a build keeps the base's")
    if (text := chat_template(tuned)) and text != chat_template(base):
        notes.append("its chat template differs; a build keeps the base's")
    return notes
