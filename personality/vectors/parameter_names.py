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
            of a layer that the class packs together.
        unread: tensors of the checkpoint that the class does not load, such as heads for several tokens.
        transposed: packed parameters whose matrices are (in, out) and not (out, in).
    """

    tensors: dict[str, list[str]]
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
        config = transformers.AutoConfig.from_pretrained(str(folder))
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
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    tensors: dict[str, list[str]] = {}
    unread = set()
    for name in names:
        parameter, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if parameter in state:
            tensors.setdefault(parameter, []).append(name)
        else:
            unread.add(name)
    transposed = {
        f"{module}.{parameter}"
        for module, found in model.named_modules()
        if getattr(found, "is_transposed", False)
        for parameter, _ in found.named_parameters(recurse=False)
    }
    return ParameterNames(tensors, frozenset(unread), frozenset(transposed))
