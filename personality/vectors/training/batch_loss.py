"""The loss of one batch, and the figures worth watching, also when several processes share the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from personality.vectors.training.batches import BatchItem
from personality.vectors.training.objectives import (
    dpo_loss,
    log_odds_ratio,
    mean_log_probs,
    orpo_loss,
    sft_loss,
    sum_log_probs,
)
from personality.vectors.training.presets import Objective
from personality.vectors.training.settings import TrainSettings

FIGURES = ("loss", "nll", "margin", "reward_margin", "chosen", "rejected", "chosen_gain", "rejected_gain")


@dataclass(frozen=True)
class References:
    """What the model at the beginning of a phase gave to the answers of a batch's behavior examples.

    Attributes:
        chosen: float32 (own,), log-probabilities of the whole chosen answers, nats.
        rejected: float32 (P,), those of the rejected ones; empty without pairs.
    """

    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class BatchLoss:
    """A batch's loss in one process.

    Attributes:
        loss: scalar to call `backward` on. Averaging the gradients of all processes gives the whole batch's gradient.
        figures: float64 (len(FIGURES),) on the loss's device: this process's share of each figure of the whole batch
            (their sum over processes is the figure), NaN for those that the objective does not have.
    """

    loss: Tensor
    figures: Tensor


def batch_loss(
    log_probs: Tensor,
    mask: Tensor,
    share: BatchItem,
    whole: BatchItem,
    objective: Objective,
    settings: TrainSettings,
    *,
    references: References | None = None,
    world: int = 1,
) -> BatchLoss:
    """The objective over the rows of one process.

    Every mean is over the whole batch, so that sharing a batch does not change it: this process's rows count with
    their share of the batch's answer tokens, or pairs. In DPO a general answer has the weight beta/2 per nat, which is
    how strongly a chosen answer is pulled at the start (the derivative of equation 7 at margin 0).

    Args:
        log_probs: (B, K), of tokens given those before them. Rows as in `collate`.
        mask: bool (B, K), response tokens.
        share: this process's examples.
        whole: the whole batch.
        objective: of the phase.
        settings: for the objective's weights.
        references: of this process's examples; needed for DPO, otherwise they only add figures.
        world: number of processes.

    Returns:
        The loss and the figures.
    """
    own, pairs = len(share.behavior), share.pairs
    rows = own + len(share.general)
    tokens = share.answer_tokens / whole.answer_tokens
    nll = sft_loss(log_probs[:rows], mask[:rows])
    loss = nll * tokens
    found: dict[str, Tensor] = {"nll": nll.detach() * tokens}
    if whole.pairs and objective == "dpo":
        # A process without pairs must still build a graph, or the others would wait for its gradients.
        general = sum_log_probs(log_probs[own:rows], mask[own:rows]).sum()
        loss = general * (-0.5 * settings.dpo_beta / whole.pairs)
    found |= dict.fromkeys(_figures_of(objective, whole, references), log_probs.new_zeros(()))
    means, lengths = mean_log_probs(log_probs, mask), mask.sum(-1)
    if own:
        part = own / len(whole.behavior)
        found["chosen"] = means[:own].mean().detach() * part
        if references is not None:
            found["chosen_gain"] = (means[:own] - references.chosen / lengths[:own]).mean().detach() * part
    if pairs:
        part = pairs / whole.pairs
        chosen, rejected = means[:pairs], means[rows:]
        found["rejected"] = rejected.mean().detach() * part
        if references is not None:
            found["rejected_gain"] = (rejected - references.rejected / lengths[rows:]).mean().detach() * part
        found["margin"] = log_odds_ratio(chosen, rejected).detach().mean() * part
        if objective == "orpo":
            orpo = orpo_loss(nll * tokens, chosen, rejected, settings.orpo_lambda * part)
            loss = orpo.loss
            found["reward_margin"] = settings.orpo_lambda * (chosen - rejected).mean().detach() * part
        elif objective == "dpo":
            assert references is not None, "DPO compares with a reference"
            sums = sum_log_probs(log_probs, mask)
            dpo = dpo_loss(sums[:pairs], sums[rows:], references.chosen, references.rejected, settings.dpo_beta)
            loss = loss + dpo.loss * part
            found["reward_margin"] = dpo.margin * part
    found["loss"] = loss.detach()
    missing = torch.full((), torch.nan, device=loss.device)
    figures = torch.stack([found.get(name, missing).double() for name in FIGURES])
    return BatchLoss(loss * world, figures)


def _figures_of(objective: Objective, whole: BatchItem, references: References | None) -> list[str]:
    """Figures that the whole batch has, also where this process has none of the examples that they come from."""
    answers = ["chosen"] if whole.behavior else []
    margins = []
    if whole.pairs:
        answers.append("rejected")
        margins = ["margin"] if objective == "sft" else ["margin", "reward_margin"]
    gains = [f"{name}_gain" for name in answers] if references is not None else []
    return answers + margins + gains
