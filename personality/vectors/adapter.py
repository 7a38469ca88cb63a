"""A task vector from a PEFT LoRA adapter, kept low-rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorFile, TensorSpec, aligned_order
from personality.manifests.vector_store import storing
from personality.vectors import low_rank
from personality.vectors.adapter_content import MERGE, AdapterContent
from personality.vectors.adapter_dense import DenseChange, dense_changes
from personality.vectors.adapter_factors import read_content
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.dtypes import COMPOSABLE, TORCH_DTYPES
from personality.vectors.stored import StoredTask, measure
from personality.vectors.task_vector import open_task_vector
from personality.vectors.tensors import matrix_shape, read_tensor, row_blocks, tensor_bytes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BLOCK = 1 << 22
"""Elements of the base looked at at a time."""

_VARIANTS = ("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "use_qalora")
"""Fields of LoraConfig with which the adapter is more than scaling · B A."""
_BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initializations that subtract the first factors from the base (PiSSA, arXiv 2404.02948, and its kin)."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def store_adapter(repository: Repository, base: Checkpoint, folder: Path) -> StoredTask:
    """Store a PEFT LoRA adapter as a low-rank vector: ΔW = scaling · B A with PEFT's own scaling,
    alpha / rank, or alpha / √rank with rsLoRA (arXiv 2312.03732), rank and alpha patterns included.

    What is no product of two factors is stored as the dense change that it makes: DoRA, trained biases, whole modules.

    Args:
        repository: where to store it.
        base: the base's weights.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        NotFoundError: when the adapter has no safetensors weights.
        IncompatibleError: for other PEFT methods and variants of LoRA that are no change of the base's weights, for
            tensors that the base does not have, wrong shapes, NaN/Inf; nothing is stored.
    """
    config = _config(folder)
    if not (folder / WEIGHTS).is_file():
        raise NotFoundError(
            f"the adapter {folder} has no {WEIGHTS}",
            "save it with `model.save_pretrained(DIR)` (safetensors is the default); pickled weights are not opened",
        )
    file = TensorFile(folder / WEIGHTS)
    content = read_content(file, config, base, folder)
    _check_against(base, file, content)
    pairs = [pair for pair in content.pairs if not pair.magnitude]
    factors = {}
    for pair in pairs:
        factors[pair.target + low_rank.SUFFIX_A] = pair.a, file.specs[pair.names[0]].dtype
        factors[pair.target + low_rank.SUFFIX_B] = pair.b, file.specs[pair.names[1]].dtype
    dense = dense_changes(base, file, content)
    header = low_rank.header(
        {pair.target: pair.scaling for pair in pairs}, [pair.target for pair in pairs if pair.transposed], list(dense)
    )
    specs = [TensorSpec(name, dtype, tuple(factor.shape)) for name, (factor, dtype) in factors.items()]
    specs += [TensorSpec(name, change.dtype, base.specs[name].shape) for name, change in dense.items()]
    specs = aligned_order(specs)
    with storing(repository, header, specs) as stored:
        for spec in specs:
            stored.writer.write(spec.name, tensor_bytes(_tensor(spec, factors, dense)))
    vector = open_task_vector(repository, stored.id, "the new vector", base=base)
    norm, rounding = measure(vector, base)
    ranks = sorted({pair.a.shape[-2] for pair in content.pairs})
    notes = [f"rank {', '.join(map(str, ranks))} on {len(content.pairs)} tensors", *content.notes]
    if dense:
        notes.append(f"kept dense, as no product of two factors: {listing(sorted(dense))}")
    return StoredTask(
        id=stored.id,
        encoding="low-rank",
        tensors={name: str(base.specs[name]) for name in sorted(vector.shapes)},
        bytes=sum(spec.nbytes for spec in specs),
        norm=norm,
        rounding=rounding,
        notes=tuple(notes),
    )


def _tensor(spec: TensorSpec, factors: dict[str, tuple[Tensor, str]], dense: dict[str, DenseChange]) -> Tensor:
    """What is stored under a name."""
    if spec.name in factors:
        return factors[spec.name][0]
    return dense[spec.name].make().to(TORCH_DTYPES[spec.dtype])


def _config(folder: Path) -> Any:
    """The adapter's LoraConfig, read by PEFT itself; refused when it is no change of the base's weights."""
    from peft import LoraConfig

    try:
        raw = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise CorruptError(f"{folder / CONFIG} is not JSON: {error}", "save the adapter again") from error
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise IncompatibleError(
            f"{folder} is a PEFT adapter of the type {kind}; only LORA is a change of weights that can be scaled",
            "merge it where it was trained (`merge_and_unload`) and import the merged checkpoint",
        )
    config = LoraConfig.from_pretrained(str(folder))
    more = {
        "biases in the factors (`lora_bias`)": getattr(config, "lora_bias", False),
        "repeated layers (`layer_replication`)": getattr(config, "layer_replication", None),
        f"an initialization that changed the base's own weights ({config.init_lora_weights})": _changes_base(config),
        **{f"the variant `{name}`": getattr(config, name, None) for name in _VARIANTS},
    }
    for what, found in more.items():
        if found:
            raise IncompatibleError(
                f"the adapter {folder} has {what}, which is no change of the base's weights alone",
                MERGE,
            )
    return config


def _changes_base(config: Any) -> bool:
    return isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower().startswith(_BASE_CHANGING)


def _check_against(base: Checkpoint, file: TensorFile, content: AdapterContent) -> None:
    """Shapes, dtypes and values, of the adapter and of what it changes in the base."""
    for pair in content.pairs:
        if pair.shape != base.specs[pair.target].shape or pair.a.shape[-2] != pair.b.shape[-1]:
            raise IncompatibleError(
                f"the factors of `{pair.target}` make a change of shape {list(pair.shape)}, the base has "
                f"{list(base.specs[pair.target].shape)}",
                "the adapter was made for another base",
            )
        _check_values(base, pair.target, [*zip(pair.names, (pair.a, pair.b), strict=True)])
        if pair.magnitude:
            _check_values(base, pair.target, [(pair.magnitude, read_tensor(file, pair.magnitude))])
    for target, name in content.saved.items():
        if file.specs[name].shape != base.specs[target].shape:
            raise IncompatibleError(
                f"the adapter's own `{target}` has the shape {list(file.specs[name].shape)}, the base's has "
                f"{list(base.specs[target].shape)}",
                "a resized vocabulary cannot be a vector of this base: make a base of that size "
                "(`model.resize_token_embeddings`), `persona init` on it, and train the adapter there",
            )
        _check_values(base, target, [(name, read_tensor(file, name))])


def _check_values(base: Checkpoint, target: str, added: list[tuple[str, Tensor]]) -> None:
    spec = base.specs[target]
    if spec.dtype not in COMPOSABLE:
        raise IncompatibleError(
            f"`{target}` is {spec.dtype} in the base: a quantized tensor cannot take a change",
            "use the 16-bit release of the base",
        )
    for name, tensor in added:
        if not bool(torch.isfinite(tensor.float()).all()):
            raise IncompatibleError(
                f"`{name}` has NaN or infinite values", "a diverged run cannot be imported; use an earlier checkpoint"
            )
    weights = base.tensor(target).reshape(matrix_shape(spec.shape))
    if not all(bool(torch.isfinite(weights[start:stop]).all()) for start, stop in row_blocks(spec, _BLOCK)):
        raise IncompatibleError(
            f"`{target}` has NaN or infinite values in the base",
            "nothing can be added to them: fetch the base again, or leave this tensor out of the adapter's targets",
        )
