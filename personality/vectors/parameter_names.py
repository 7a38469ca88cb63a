"""How a transformers class names what a checkpoint holds: adapters and fine-tunes speak of the class's parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personality.vectors.checkpoint import Checkpoint


@dataclass(frozen=True)
class ParameterNames:
    """One class's view of a checkpoint.

    Attributes:
        tensors: by parameter or buffer of the class, the checkpoint's tensors that it is made of: one, or all experts
            of a layer that the class packs together: first the gates of all experts, then their ups.
        shapes: of these parameters and buffers.
        stacked: parameters that are nothing but matrices of experts, stacked: shape (experts, rows, columns).
        unread: tensors of the checkpoint that the class does not load, such as heads for several tokens.
        transposed: packed parameters whose matrices are (in, out) and not (out, in).
    """

    tensors: dict[str, list[str]]
    shapes: dict[str, tuple[int, ...]]
    stacked: frozenset[str]
    unread: frozenset[str]
    transposed: frozenset[str]


def parameter_names(checkpoint: Checkpoint, folder: Path) -> Iterator[ParameterNames]:
    """How the classes that may have been trained see a checkpoint, by transformers' own rules of conversion.

    Args:
        checkpoint: the weights.
        folder: whose config.json names the class: the checkpoint's, or a fine-tune's.

    Yields:
        The view of the class that the configuration names, then that of the causal language model where this is another
        (of the text configuration, for a model that also sees). Nothing where transformers does not know the model, or
        the class loads nothing of the checkpoint.
    """
    import torch

    for kind, config in _classes(folder):
        view = None
        # What transformers stumbles over here, it would stumble over when it loads the model.
        with contextlib.suppress(AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError):
            with torch.device("meta"):
                model = kind(config)
            view = _view(model, checkpoint.specs)
        if view is not None and view.tensors:
            yield view


def _classes(folder: Path) -> list[tuple[Any, Any]]:
    """Classes with the configuration of each; not loaded."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (KeyError, OSError, ValueError):
        return []
    named = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or []]
    found = [(kind, config) for kind in named if kind is not None]
    text: Any = config.get_text_config()
    for candidate in (config, text):
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(candidate), None)
        if kind is not None and kind not in named:
            # A class for text is registered for the whole model's configuration too, and takes its text part.
            found.append((kind, candidate if isinstance(candidate, kind.config_class) else text))
            named.append(kind)
    return found


def _view(model: Any, names: Iterable[str]) -> ParameterNames:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        Concatenate,
        MergeModulelist,
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    order = {pattern: place for rule in converters for place, pattern in enumerate(rule.source_patterns)}
    stacking = {
        pattern
        for rule in converters
        if all(isinstance(step, (MergeModulelist, Concatenate)) for step in rule.operations)
        for pattern in rule.source_patterns
    }
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    found: dict[str, list[tuple[int, str]]] = {}
    unread, stacked = set(), set()
    for name in sorted(names, key=dot_natural_key):
        parameter, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if parameter not in state:
            unread.add(name)
            continue
        found.setdefault(parameter, []).append((order.get(pattern, 0), name))
        if pattern in stacking:
            stacked.add(parameter)
    transposed = {
        f"{module}.{parameter}"
        for module, part in model.named_modules()
        if getattr(part, "is_transposed", False)
        for parameter, _ in part.named_parameters(recurse=False)
    }
    return ParameterNames(
        # Sorting is stable: within a part, experts stay in the order of their numbers.
        tensors={parameter: [name for _, name in sorted(parts, key=_place)] for parameter, parts in found.items()},
        shapes={parameter: tuple(state[parameter].shape) for parameter in found},
        stacked=frozenset(stacked),
        unread=frozenset(unread),
        transposed=frozenset(transposed),
    )


def _place(part: tuple[int, str]) -> int:
    return part[0]
