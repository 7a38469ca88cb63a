"""A task vector from a PEFT LoRA adapter, kept low-rank."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from personality.manifests.errors import CorruptError, IncompatibleError, NotFoundError
from personality.manifests.repository import Repository
from personality.manifests.tensor_file import TensorFile, TensorSpec, aligned_order
from personality.manifests.vector_store import storing
from personality.vectors import low_rank
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.dtypes import COMPOSABLE
from personality.vectors.stored import StoredTask, measure
from personality.vectors.task_vector import open_task_vector
from personality.vectors.tensors import read_tensor, tensor_bytes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


_VARIANTS = ("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "use_qalora")
"""Fields of LoraConfig with which the adapter is more than scaling · B A."""
_BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initializations that subtract the first factors from the base (PiSSA, arXiv 2404.02948, and its kin)."""


@dataclass(frozen=True)
class _Pair:
    """The two factors of one base tensor, by their names in the adapter."""

    target: str
    a: str
    b: str
    scaling: float


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def store_adapter(repository: Repository, base: Checkpoint, folder: Path) -> StoredTask:
    """Store a PEFT LoRA adapter as a low-rank vector: ΔW = scaling · B A with PEFT's own scaling,
    alpha / rank, or alpha / √rank with rsLoRA (arXiv 2312.03732), rank and alpha patterns included.

    Args:
        repository: where to store it.
        base: the base's weights.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        NotFoundError: when the adapter has no safetensors weights.
        IncompatibleError: for what is not plain LoRA (DoRA, trained biases, saved modules, other PEFT methods),
            for tensors that the base does not have, wrong shapes, NaN/Inf; nothing is stored.
    """
    config = _config(folder)
    if not (folder / WEIGHTS).is_file():
        raise NotFoundError(
            f"the adapter {folder} has no {WEIGHTS}",
            "save it with `model.save_pretrained(DIR)` (safetensors is the default); pickled weights are not opened",
        )
    file = TensorFile(folder / WEIGHTS)
    pairs = _pairs(file, config, folder)
    _check_against(base, file, pairs, fan_in_fan_out=config.fan_in_fan_out)
    specs, sources = [], {}
    for pair in pairs:
        for name, suffix in ((pair.a, low_rank.SUFFIX_A), (pair.b, low_rank.SUFFIX_B)):
            old = file.specs[name]
            specs.append(TensorSpec(pair.target + suffix, old.dtype, old.shape))
            sources[pair.target + suffix] = name
    header = low_rank.header(
        {pair.target: pair.scaling for pair in pairs},
        [pair.target for pair in pairs] if config.fan_in_fan_out else [],
    )
    specs = aligned_order(specs)
    with storing(repository, header, specs) as stored:
        for spec in specs:
            stored.writer.write(spec.name, tensor_bytes(read_tensor(file, sources[spec.name])))
    vector = open_task_vector(repository, stored.id, "the new vector", base=base)
    norm, rounding = measure(vector, base)
    ranks = sorted({file.specs[pair.a].shape[0] for pair in pairs})
    return StoredTask(
        id=stored.id,
        encoding="low-rank",
        tensors={pair.target: str(base.specs[pair.target]) for pair in pairs},
        bytes=sum(spec.nbytes for spec in specs),
        norm=norm,
        rounding=rounding,
        notes=(f"rank {', '.join(map(str, ranks))} on {len(pairs)} tensors",),
    )


def _config(folder: Path) -> Any:
    """The adapter's LoraConfig, read by PEFT itself; refused when it is more than plain LoRA."""
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
        "DoRA (its magnitudes make the change depend on the base's norms)": config.use_dora,
        "trained biases": config.bias != "none",
        "whole modules saved beside the factors (`modules_to_save`)": config.modules_to_save,
        "factors of packed parameters (`target_parameters`)": getattr(config, "target_parameters", None),
        "biases in the factors (`lora_bias`)": getattr(config, "lora_bias", False),
        "repeated layers (`layer_replication`)": getattr(config, "layer_replication", None),
        f"an initialization that changed the base's own weights ({config.init_lora_weights})": _changes_base(config),
        **{f"the variant `{name}`": getattr(config, name, None) for name in _VARIANTS},
    }
    for what, found in more.items():
        if found:
            raise IncompatibleError(
                f"the adapter {folder} has {what}, which plain low-rank factors cannot carry",
                "merge it (`model.merge_and_unload().save_pretrained(DIR)`) and `persona import` the merged checkpoint",
            )
    return config


def _changes_base(config: Any) -> bool:
    return isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower().startswith(_BASE_CHANGING)


def _pairs(file: TensorFile, config: Any, folder: Path) -> list[_Pair]:
    sides: dict[str, dict[str, str]] = {}
    unknown = []
    for name in file.specs:
        match = _FACTOR.match(name)
        if match is None:
            unknown.append(name)
            continue
        sides.setdefault(match["module"].removeprefix(_PREFIX), {})[match["side"]] = name
    lonely = [module for module, found in sides.items() if len(found) != 2]
    if unknown or lonely or not sides:
        raise IncompatibleError(
            f"the adapter {folder} has {listing(unknown)} that are not LoRA factors and "
            f"{listing(lonely)} with one factor only",
            "merge it (`model.merge_and_unload().save_pretrained(DIR)`) and `persona import` the merged checkpoint",
        )
    pairs = []
    for module, found in sorted(sides.items()):
        rank = file.specs[found["A"]].shape[0]
        alpha = _pattern(config.alpha_pattern, module, config.lora_alpha)
        expected = _pattern(config.rank_pattern, module, config.r)
        if rank != expected:
            raise CorruptError(
                f"the factors of `{module}` in {folder} have rank {rank}, {CONFIG} says {expected}",
                "save the adapter again; its two files do not belong together",
            )
        scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
        pairs.append(_Pair(f"{module}.weight", found["A"], found["B"], float(scaling)))
    return pairs


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: a pattern counts when it matches the end of the module's name, as a whole component."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _check_against(base: Checkpoint, file: TensorFile, pairs: list[_Pair], *, fan_in_fan_out: bool) -> None:
    missing = [pair.target for pair in pairs if pair.target not in base.specs]
    if missing:
        raise IncompatibleError(
            f"the adapter changes {listing(missing)} that the base does not have",
            "it was made for another base, or for a model class that packs these weights; merge it and import "
            "the merged checkpoint",
        )
    for pair in pairs:
        a, b = file.specs[pair.a], file.specs[pair.b]
        shape = (b.shape[0], a.shape[1])
        target = base.specs[pair.target]
        if (shape[::-1] if fan_in_fan_out else shape) != target.shape or a.shape[0] != b.shape[1]:
            raise IncompatibleError(
                f"the factors of `{pair.target}` make a change of shape {list(shape)}, the base has "
                f"{list(target.shape)}",
                "the adapter was made for another base",
            )
        if target.dtype not in COMPOSABLE:
            raise IncompatibleError(
                f"`{pair.target}` is {target.dtype} in the base: a quantized tensor cannot take a change",
                "use the 16-bit release of the base",
            )
        for name in (pair.a, pair.b):
            if not bool(torch.isfinite(read_tensor(file, name).float()).all()):
                raise IncompatibleError(
                    f"`{name}` has NaN or infinite values",
                    "a diverged run cannot be imported; use an earlier checkpoint",
                )
