"""Low-rank adapters to train instead of the weights themselves (LoRA, Hu et al. 2021, arXiv 2106.09685), by PEFT."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from personality.manifests.errors import UsageError
from personality.vectors.training.selection import group_of
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.trainable import chosen_parameters


def adapted_modules(model: nn.Module, settings: TrainSettings) -> list[str]:
    """The linear layers that get factors: those whose weight the settings would train.

    Routers choose experts and are left alone unless `only` names them; experts packed into one tensor are no linear
    layers, so an adapter leaves them alone too.

    Args:
        model: of transformers.
        settings: `only`, `layers`.

    Returns:
        Module names, in the model's order.

    Raises:
        UsageError: there is none.
    """
    chosen = chosen_parameters(model, settings)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and f"{name}.weight" in chosen
        and (settings.only or group_of(f"{name}.weight") != "router")
    ]
    if not found:
        raise UsageError(
            f"no linear layer to adapt among {len(chosen)} chosen parameters, such as `{min(chosen)}`",
            "train the weights themselves (without `--lora`), or choose others with `--only`",
        )
    return found


def attach_adapters(model: Any, settings: TrainSettings) -> Any:
    """Put trainable factors into a model's linear layers; its own weights are left alone.

    Args:
        model: of transformers; its layers are replaced in place.
        settings: `lora_rank`, `lora_alpha` (twice the rank by default), `seed` for the factors' start.

    Returns:
        PEFT's model around it; `save_pretrained` writes an adapter.
    """
    from peft import LoraConfig, get_peft_model

    rank = settings.lora_rank
    assert rank is not None
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.lora_alpha or 2.0 * rank,
        target_modules=adapted_modules(model, settings),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
        return get_peft_model(model, config)


@torch.no_grad()
def join_adapters(model: Any, other: Any) -> None:
    """Make a model's adapters the difference of its own and another's: s·BA − s·B'A' = s·[B, −B'] [A; A'].

    Args:
        model: from `attach_adapters`; its factors' rank doubles, their scale stays.
        other: likewise, with the same layers and rank.
    """
    from peft.tuners.lora import Linear

    theirs = dict(other.named_modules())
    for name, layer in model.named_modules():
        if not isinstance(layer, Linear):
            continue
        for key in list(layer.lora_A):
            down, up = layer.lora_A[key], layer.lora_B[key]
            more_down, more_up = theirs[name].lora_A[key], theirs[name].lora_B[key]
            down.weight = nn.Parameter(torch.cat([down.weight, more_down.weight]), requires_grad=False)
            up.weight = nn.Parameter(torch.cat([up.weight, -more_up.weight], dim=1), requires_grad=False)
            layer.r[key] *= 2
            layer.lora_alpha[key] *= 2
    for config in model.peft_config.values():
        config.r *= 2
        config.lora_alpha *= 2
