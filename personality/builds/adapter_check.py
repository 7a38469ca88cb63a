"""Reading an exported adapter back with PEFT, and asking engines what they answer with it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from personality.builds.comparison import Agreement, agreement, log_probabilities, probe_tokens
from personality.composition.composer import Composer
from personality.evaluation.scores import check_finite
from personality.manifests.errors import CorruptError, PersonaError
from personality.model import load_composed, load_model
from personality.serving.engine import Engine
from personality.serving.vllm_environment import VllmEnvironment
from personality.vectors.layers import layer_of
from personality.vectors.truncation import Truncated

_READ_BACK = 1e-4
"""Greatest difference of a relative error as stated and as PEFT's own product has it: what float32 factors cost."""
_ENGINE_ALLOWED = 1e-4
"""Greatest |Δ log-probability| (nats, float32) at which vLLM agrees with PEFT."""


@dataclass(frozen=True)
class TensorLoss:
    """What an adapter's product leaves out of one tensor's change.

    Attributes:
        name: of the base tensor.
        rank: of the product.
        norm: Frobenius norm of the composed change ΔW.
        lost: Frobenius norm of ΔW − B A.
    """

    name: str
    rank: int
    norm: float
    lost: float

    @classmethod
    def of(cls, name: str, found: Truncated) -> TensorLoss:
        """The loss of a truncation."""
        return cls(name, found.rank, found.norm, found.lost)

    @property
    def relative(self) -> float:
        """‖ΔW − B A‖ / ‖ΔW‖; 0 where nothing changes."""
        return self.lost / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class LayerLoss:
    """The losses of one layer's tensors together.

    Attributes:
        layer: its number; None for the output head.
        tensors: how many.
        relative: ‖ΔW − B A‖ / ‖ΔW‖ over all of them.
        worst: the tensor with the largest relative loss.
        worst_relative: that loss.
    """

    layer: int | None
    tensors: int
    relative: float
    worst: str
    worst_relative: float


def layer_losses(losses: Sequence[TensorLoss]) -> list[LayerLoss]:
    """Losses by layer, in order; the output head comes last."""
    groups: dict[int | None, list[TensorLoss]] = {}
    for loss in losses:
        groups.setdefault(layer_of(loss.name), []).append(loss)
    found = []
    for layer in sorted(groups, key=lambda layer: (layer is None, layer or 0)):
        worst = max(groups[layer], key=lambda loss: loss.relative)
        relative = whole(groups[layer])
        found.append(LayerLoss(layer, len(groups[layer]), relative, worst.name, worst.relative))
    return found


def whole(losses: Sequence[TensorLoss]) -> float:
    """‖ΔW − B A‖ / ‖ΔW‖ over all tensors."""
    norm = sum(loss.norm**2 for loss in losses)
    return float((sum(loss.lost**2 for loss in losses) / norm) ** 0.5) if norm else 0.0


@dataclass(frozen=True)
class AdapterAgreement:
    """How nearly the base with the adapter answers as the version does.

    Attributes:
        agreement: of PEFT's model with the version composed in memory.
        divergence: mean KL divergence of the adapter's predictions from the version's, nats a position.
        effect: of the base alone with the version: what the version changes at all.
        effect_divergence: likewise, nats a position.
        vllm: of stock vLLM with PEFT's model; None when it was not asked.
        vllm_version: such as `0.32.0`; empty when it was not asked.
    """

    agreement: Agreement
    divergence: float
    effect: Agreement
    effect_divergence: float
    vllm: Agreement | None = None
    vllm_version: str = ""


def compare_adapter(
    composer: Composer,
    folder: Path,
    losses: Sequence[TensorLoss],
    *,
    max_rank: int,
    verify: VllmEnvironment | None = None,
) -> AdapterAgreement:
    """Read an adapter back with PEFT on its base, and compare weights with what was meant and answers with the version.

    Args:
        composer: of the version, without steering.
        folder: the adapter's.
        losses: what each tensor's product was said to leave out; one for each tensor that the adapter changes.
        max_rank: `max_lora_rank` to start vLLM with.
        verify: the vLLM to ask too, in float32.

    Raises:
        CorruptError: when PEFT reads other changes than were meant.
        PersonaError: when vLLM does not answer as PEFT does.
    """
    model = load_model(composer.folder)
    ids = probe_tokens(model.get_input_embeddings().num_embeddings)
    plain = log_probabilities(model, ids)
    adapted_model = _with_adapter(model, folder)
    _compare_weights(composer, adapted_model, losses)
    adapted = log_probabilities(adapted_model, ids)
    del model, adapted_model  # one model in memory at a time
    wanted = log_probabilities(load_composed(composer), ids)
    check_finite(wanted)
    served, version = (
        (None, "") if verify is None else _ask_vllm(verify, composer.folder, folder, ids, adapted, max_rank)
    )
    return AdapterAgreement(
        agreement=agreement(adapted, wanted),
        divergence=divergence(wanted, adapted),
        effect=agreement(plain, wanted),
        effect_divergence=divergence(wanted, plain),
        vllm=served,
        vllm_version=version,
    )


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
        return PeftModel.from_pretrained(model, str(folder)).eval()


def _compare_weights(composer: Composer, model: Any, losses: Sequence[TensorLoss]) -> None:
    """Hold PEFT's own product for each layer against the composed change."""
    from peft.tuners.lora import LoraLayer

    layers = {
        f"{name.removeprefix('base_model.model.')}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    stated = {loss.name: loss for loss in losses}
    if layers.keys() != stated.keys():
        other = sorted(layers.keys() ^ stated.keys())
        raise _misread(f"it changes `{other[0]}` in one of the two only ({len(other)} tensors differ so)")
    for name, layer in layers.items():
        delta = composer.delta(name).double()
        product = layer.get_delta_weight(layer.active_adapters[0]).detach().cpu().double()
        norm, lost = float(delta.norm()), float((delta - product).norm())
        found = lost / norm if norm else lost
        if not abs(found - stated[name].relative) <= _READ_BACK:
            raise _misread(f"the change of `{name}` is off by {found:.2%}, not by {stated[name].relative:.2%}")


def _misread(what: str) -> CorruptError:
    return CorruptError(
        f"the adapter, read back with PEFT, is not what was composed: {what}",
        "nothing was kept; check the disk, then `persona verify`",
    )


def _ask_vllm(
    environment: VllmEnvironment, base: Path, folder: Path, ids: Tensor, expected: Tensor, max_rank: int
) -> tuple[Agreement, str]:
    with Engine(environment) as engine:
        loaded = engine.load(base, enable_lora=True, max_lora_rank=max_rank)
        answered = engine.all_log_probabilities(ids, lora=folder)
    compared = agreement(answered[..., : expected.shape[-1]], expected[:, :-1])
    if not compared.greatest_difference <= _ENGINE_ALLOWED:
        raise PersonaError(
            f"vLLM {loaded['vllm']} with the adapter does not answer as PEFT does: log-probabilities differ by up to "
            f"{compared.greatest_difference:.2g} nats, greedy tokens agree at {compared.greedy:.1%}",
            "nothing was kept; export the weights themselves: `--to vllm`",
        )
    return compared, str(loaded["vllm"])


def divergence(first: Tensor, second: Tensor) -> float:
    """KL(first ‖ second), nats, mean over positions, of two results of `log_probabilities`."""
    return float((first.double().exp() * (first.double() - second.double())).sum(-1).mean().clamp_min(0))
