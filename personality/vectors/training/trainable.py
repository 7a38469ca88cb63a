"""Which parameters a run changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from personality.manifests.errors import UsageError
from personality.vectors.training.selection import select_parameters
from personality.vectors.training.settings import TrainSettings


def frozen_parameters(model: nn.Module, settings: TrainSettings) -> set[int]:
    """Parameters that a run leaves alone unless they are asked for: embeddings and norms.

    Args:
        model: of transformers.
        settings: `train_embeddings` and `train_norms`.

    Returns:
        `id`s of the parameters.
    """
    frozen: set[int] = set()
    if not settings.train_embeddings:
        ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
        for module in ends:
            if module is not None:
                frozen.update(id(parameter) for parameter in module.parameters())
    if not settings.train_norms:
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                frozen.update(id(parameter) for parameter in module.parameters(recurse=False))
    return frozen


def chosen_parameters(model: nn.Module, settings: TrainSettings) -> set[str]:
    """Names of the parameters that a run is about: what `only` and `layers` name, or all but embeddings and norms.

    Args:
        model: of transformers, without adapters.
        settings: `only`, `layers`, `train_embeddings`, `train_norms`.

    Raises:
        UsageError: a selector names nothing that this model has.
    """
    found = select_parameters(model, settings.only, settings.layers)
    if not settings.only:
        frozen = frozen_parameters(model, settings)
        found -= {name for name, parameter in model.named_parameters() if id(parameter) in frozen}
    return found


@contextmanager
def trainable(model: nn.Module, settings: TrainSettings) -> Iterator[tuple[str, ...]]:
    """Let only what is to be trained require gradients, and put everything back afterwards.

    Args:
        model: of transformers, or with the adapters of `attach_adapters`, whose factors are then what is trained.
        settings: of the run.

    Yields:
        Names of the trained parameters, in the model's order.

    Raises:
        UsageError: nothing to train, or a parameter whose dtype the settings do not mean.
    """
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    if settings.lora_rank is None:
        keep = chosen_parameters(model, settings)
        names = [name for name, requires_grad in before.items() if requires_grad and name in keep]
        keep = set(names)
        if not names:
            raise UsageError(
                "nothing to train: every parameter is frozen", "use `--train-embeddings` or `--train-norms`"
            )
        _check_dtypes(model, names, settings)
    else:
        names = [name for name, requires_grad in before.items() if requires_grad]
        keep = set(names)
    config: Any = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in keep)
        if settings.gradient_checkpointing:
            _switch_checkpointing(model, on=True)
        yield tuple(names)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before.get(name, False))
            parameter.grad = None
        if settings.gradient_checkpointing:
            _switch_checkpointing(model, on=False)
        if use_cache is not None:
            config.use_cache = use_cache  # Trainer switches it off for good
        model.eval()


def _check_dtypes(model: nn.Module, names: list[str], settings: TrainSettings) -> None:
    wanted = torch.float32 if settings.weights == "float32" else torch.bfloat16
    parameters = dict(model.named_parameters())
    for name in names:
        dtype = parameters[name].dtype
        if dtype != wanted:
            raise UsageError(
                f"{name} is {dtype}, `weights` says {settings.weights}: below float32 small steps are rounded away",
                f"load the model with `dtype={wanted}`, or say how its weights are kept (`--weights`)",
            )


def _switch_checkpointing(model: Any, *, on: bool) -> None:
    """Recompute activations in the backward pass, or keep them again."""
    # transformers renamed the switch within version 5.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()
