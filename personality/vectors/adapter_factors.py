"""Which of the base's tensors the factors of a PEFT LoRA adapter change, and how."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality.manifests.errors import CorruptError, IncompatibleError
from personality.manifests.tensor_file import TensorFile
from personality.vectors.adapter_content import MERGE, AdapterContent, Pair
from personality.vectors.checkpoint import Checkpoint, listing
from personality.vectors.parameter_names import ParameterNames, parameter_names
from personality.vectors.tensors import read_tensor
from personality.vectors.tied_ends import absent_head, tied_changes

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"^(?P<module>.+?)(?P<inner>(\.base_layer)*)\.lora_(?P<table>embedding_)?(?P<side>[AB])(\.weight)?$"
)
_MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(\.weight)?$")
_COPY = re.compile(r"^(?P<module>.+?)(\.base_layer)?\.weight$")


@dataclass
class _Site:
    """What one LoRA layer of PEFT saved.

    Attributes:
        module: its name in the model.
        depth: 0; more for the inner ones of several layers around one module, which each change one of its parameters.
        table: it belongs to an embedding, whose factors lie the other way round.
        names: of its factors in the adapter, by side.
        magnitude: name of its magnitudes in the adapter, for DoRA.
    """

    module: str
    depth: int
    table: bool
    names: dict[str, str]
    magnitude: str = ""

    @property
    def weight(self) -> str:
        """The parameter of a layer that has one weight."""
        return f"{self.module}.weight"


def read_content(file: TensorFile, config: Any, base: Checkpoint, folder: Path) -> AdapterContent:
    """What an adapter changes, with the tensors of the base that it changes.

    Args:
        file: the adapter's weights.
        config: its LoraConfig.
        base: the base's weights.
        folder: the adapter's, for errors.

    Raises:
        IncompatibleError: for tensors of no known meaning, and changes of tensors that the base does not have.
        CorruptError: when the configuration states another rank.
    """
    sites, saved = _sites(file, config, base, folder)
    missing: list[str] = []
    # Most checkpoints name their tensors as the class names its parameters.
    for view in itertools.chain([None], parameter_names(base, base.folder)):
        tied = absent_head(base, view) if view else {}
        homes = {name: _home(name, base, view) for name in saved}
        lost = [
            site.weight for site in sites if not (_parameters(site, base, view, file, config) or site.weight in tied)
        ]
        lost += [name for name, home in homes.items() if not home]
        if not lost:
            pairs = [pair for site in sites for pair in _pairs(site, view, tied, file, config, base, folder)]
            replaced = {home: saved[name] for name, home in homes.items()}
            pairs, notes = tied_changes(pairs, replaced, base)
            return AdapterContent(pairs, replaced, notes)
        missing = missing or lost
    raise IncompatibleError(
        f"the adapter changes {listing(missing)} that the base does not have",
        f"it was made for another base, or for a model class that packs these weights: {MERGE}",
    )


def _home(parameter: str, base: Checkpoint, view: ParameterNames | None) -> str:
    """The base's tensor that is a parameter of the class; empty when there is none, or more than one."""
    names = [name for name in (parameter,) if name in base.specs] if view is None else view.tensors.get(parameter, [])
    return names[0] if len(names) == 1 else ""


def _sites(file: TensorFile, config: Any, base: Checkpoint, folder: Path) -> tuple[list[_Site], dict[str, str]]:
    """LoRA layers, and by parameter what is saved whole."""
    found: dict[tuple[str, int], _Site] = {}
    magnitudes, rest = {}, []
    for name in file.specs:
        if magnitude := _MAGNITUDE.match(name):
            magnitudes[magnitude["module"].removeprefix(_PREFIX)] = name
            continue
        match = _FACTOR.match(name)
        if match is None:
            rest.append(name)
            continue
        module, depth = match["module"].removeprefix(_PREFIX), match["inner"].count(".")
        site = found.setdefault((module, depth), _Site(module, depth, bool(match["table"]), {}))
        site.names[match["side"]] = name
    for module, name in magnitudes.items():
        if (module, 0) not in found:
            rest.append(name)
        else:
            found[module, 0].magnitude = name
    # PEFT saves embeddings and head along with their factors, unchanged unless the vocabulary was.
    rest = [name for name in rest if not _is_the_base_s(name, file, base)]
    whole = rest if config.modules_to_save or config.bias != "none" else []
    unknown = [name for name in rest if name not in whole]
    lonely = [site.module for site in found.values() if len(site.names) != 2]
    if unknown or lonely or not found:
        raise IncompatibleError(
            f"the adapter {folder} has {listing(unknown)} that are not LoRA factors and "
            f"{listing(lonely)} with one factor only",
            MERGE,
        )
    return [found[key] for key in sorted(found)], {_parameter(name): name for name in whole}


def _parameter(name: str) -> str:
    """The parameter whose new values an adapter holds under a name."""
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".")


def _is_the_base_s(name: str, file: TensorFile, base: Checkpoint) -> bool:
    """Whether a tensor beside the factors is what the base has of that name or, for a tied head, of its embeddings."""
    match = _COPY.match(name)
    if match is None:
        return False
    candidates = [own for own in base.specs if own.endswith(f"{match['module'].rpartition('.')[2]}.weight")]
    candidates += [own for own in base.specs if own.endswith("embed_tokens.weight")]
    saved = read_tensor(file, name)
    return any(_same_values(saved, base.tensor(own)) for own in candidates if base.specs[own].shape == saved.shape)


def _same_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors agree in the dtype of one of them."""
    return torch.equal(first.to(second.dtype), second) or torch.equal(first, second.to(first.dtype))


def _parameters(site: _Site, base: Checkpoint, view: ParameterNames | None, file: TensorFile, config: Any) -> list[str]:
    """Parameters of the class that a site may change; more than one only where shapes do not tell them apart."""
    if view is None:
        return [site.weight] if site.depth == 0 and site.weight in base.specs else []
    if site.depth == 0 and site.weight in view.tensors and len(view.shapes[site.weight]) == 2:
        return [site.weight]
    a, b = (file.specs[site.names[side]].shape for side in "AB")
    targets = config.target_parameters or ()
    found = []
    for name, shape in view.shapes.items():
        if name.rpartition(".")[0] != site.module or len(shape) != 3 or not _matches(targets, name):
            continue
        if a[0] % shape[0] == 0 and a[0] == b[1] and {a[1], b[0]} == set(shape[1:]):
            found.append(name)
    return found


def _matches(targets: Iterable[str], name: str) -> bool:
    """PEFT's rule for `target_parameters`: the whole name, or its end after a dot."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _pairs(
    site: _Site,
    view: ParameterNames | None,
    tied: dict[str, str],
    file: TensorFile,
    config: Any,
    base: Checkpoint,
    folder: Path,
) -> list[Pair]:
    parameters = _parameters(site, base, view, file, config)
    if not parameters:
        return [_pair(site, tied[site.weight], file, config, folder)]
    if view is None:
        return [_pair(site, site.weight, file, config, folder, site.weight)]
    if len(parameters) > 1:
        raise IncompatibleError(
            f"the factors of `{site.module}` in {folder} fit {listing(parameters)} alike, and PEFT does not save which "
            "they belong to",
            MERGE,
        )
    (parameter,) = parameters
    tensors = view.tensors[parameter]
    if len(view.shapes[parameter]) == 2 and len(tensors) == 1:
        return [_pair(site, tensors[0], file, config, folder, parameter)]
    stack = _stack(site, parameter, view, file, config, folder)
    if len(tensors) == 1:
        return [replace(stack, target=tensors[0])]
    return _split(stack, parameter, tensors, view, base)


def _pair(
    site: _Site, target: str, file: TensorFile, config: Any, folder: Path, parameter: str = "", experts: int = 1
) -> Pair:
    """The two factors as PEFT saved them."""
    names = site.names["A"], site.names["B"]
    a, b = (read_tensor(file, name) for name in names)
    if a.dim() != 2 or b.dim() != 2:
        raise IncompatibleError(
            f"the factors of `{site.module}` in {folder} have the shapes {list(a.shape)} and {list(b.shape)}: they are "
            "of a convolution",
            MERGE,
        )
    wrapped = parameter and _matches(config.target_parameters or (), parameter)
    key = parameter if wrapped else site.module
    rank = a.shape[0] // experts
    alpha = _pattern(config.alpha_pattern, key, config.lora_alpha)
    expected = _pattern(config.rank_pattern, key, config.r)
    if rank != expected:
        raise CorruptError(
            f"the factors of `{site.module}` in {folder} have rank {rank}, adapter_config.json says {expected}",
            "save the adapter again; its two files do not belong together",
        )
    scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    return Pair(target, a, b, float(scaling), site.table or bool(config.fan_in_fan_out), names, site.magnitude)


def _stack(site: _Site, parameter: str, view: ParameterNames, file: TensorFile, config: Any, folder: Path) -> Pair:
    """Factors of all experts, which PEFT keeps in two matrices: A (experts · rank, in) and B (out, rank · experts)."""
    experts, first, second = view.shapes[parameter]
    pair = _pair(site, parameter, file, config, folder, parameter, experts)
    inner, outer = pair.a.shape[1], pair.b.shape[0]
    # Where shapes do not tell how the matrices lie, the class does.
    transposed = parameter in view.transposed if first == second else (inner, outer) == (first, second)
    return replace(
        pair,
        a=pair.a.reshape(experts, -1, inner),
        b=pair.b.reshape(outer, -1, experts).permute(2, 0, 1),
        transposed=transposed,
    )


def _split(stack: Pair, parameter: str, tensors: list[str], view: ParameterNames, base: Checkpoint) -> list[Pair]:
    """Factors of a parameter that the class stacks from the base's experts: each expert's own share of them."""
    experts, rows, columns = view.shapes[parameter]
    parts = [tensors[start : start + experts] for start in range(0, len(tensors), experts)]
    heights = [base.specs[part[0]].shape[0] for part in parts]
    fits = all(
        base.specs[name].shape == (height, columns)
        for part, height in zip(parts, heights, strict=True)
        for name in part
    )
    if parameter not in view.stacked or stack.transposed or sum(heights) != rows or not fits:
        raise IncompatibleError(
            f"the adapter changes `{parameter}`, which the base holds in {listing(tensors)} otherwise than stacked",
            MERGE,
        )
    found, start = [], 0
    for part, height in zip(parts, heights, strict=True):
        for expert, name in enumerate(part):
            b = stack.b[expert, start : start + height]
            found.append(replace(stack, target=name, a=stack.a[expert], b=b, transposed=False))
        start += height
    return found


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: a pattern counts when it matches the end of the module's name, as a whole component."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
