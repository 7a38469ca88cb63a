"""Training losses as pure functions of log-probabilities over response tokens.

Shapes: B rows of a batch, T positions, V tokens of the vocabulary. A mask (B, T) is True at positions whose
*token* belongs to a response; position t's log-probability is that of token t given the tokens before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class OrpoLoss:
    """ORPO's loss with the figures worth watching.

    Attributes:
        loss: scalar, nll + weight·odds.
        odds: scalar, mean of -log sigmoid(log-odds ratio).
        margin: scalar without gradient, mean log-odds ratio of chosen to rejected.
    """

    loss: Tensor
    odds: Tensor
    margin: Tensor


@dataclass(frozen=True)
class DpoLoss:
    """DPO's loss with the figures worth watching.

    Attributes:
        loss: scalar, mean of -log sigmoid(reward margin).
        margin: scalar without gradient, mean reward margin: beta times how much more the policy has raised the chosen
            response over the reference than the rejected one, nats.
    """

    loss: Tensor
    margin: Tensor


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token.

    Args:
        logits: (B, T, V), the predictions *for* `tokens` (already shifted); any float dtype.
        tokens: int64 (B, T).

    Returns:
        float32 (B, T).
    """
    logits = logits.float()
    picked = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return picked - torch.logsumexp(logits, dim=-1)


def mean_log_probs(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Length-normalized log-probability of each row's response.

    Args:
        log_probs: (B, T).
        mask: bool (B, T), at least one True in every row.

    Returns:
        (B,), the mean over each row's masked positions, nats per token.
    """
    return torch.where(mask, log_probs, 0.0).sum(-1) / mask.sum(-1)


def sum_log_probs(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each row's response.

    Args:
        log_probs: (B, T).
        mask: bool (B, T).

    Returns:
        (B,), the sum over each row's masked positions, nats.
    """
    return torch.where(mask, log_probs, 0.0).sum(-1)


def sft_loss(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood, averaged over all response tokens of the batch.

    Args:
        log_probs: (B, T).
        mask: bool (B, T), at least one True.

    Returns:
        Scalar, nats per token.
    """
    return -torch.where(mask, log_probs, 0.0).sum() / mask.sum()


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The log-odds ratio log [p_c/(1-p_c)] - log [p_r/(1-p_r)], p being the geometric mean of a response's
    token probabilities.

    Args:
        chosen: (B,), length-normalized log-probabilities, below 0.
        rejected: (B,), likewise.

    Returns:
        (B,), float32 (Hong et al. 2024, arXiv 2403.07691, equations 3 to 5).
    """
    chosen, rejected = chosen.float(), rejected.float()
    return (chosen - rejected) - (_log_one_minus_exp(chosen) - _log_one_minus_exp(rejected))


def orpo_loss(nll: Tensor, chosen: Tensor, rejected: Tensor, weight: float) -> OrpoLoss:
    """Odds-ratio preference optimization (Hong et al. 2024, arXiv 2403.07691, equation 6).

    Args:
        nll: scalar, the likelihood term (`sft_loss` of the chosen responses).
        chosen: (B,), length-normalized log-probabilities of the chosen responses.
        rejected: (B,), likewise of the rejected ones.
        weight: lambda of the paper, `beta` elsewhere.

    Returns:
        The loss and its parts.
    """
    ratio = log_odds_ratio(chosen, rejected)
    odds = -functional.logsigmoid(ratio).mean()
    return OrpoLoss(loss=nll + weight * odds, odds=odds, margin=ratio.detach().mean())


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> DpoLoss:
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

    Args:
        chosen: (B,), log-probabilities of the whole chosen responses under the policy, nats.
        rejected: (B,), likewise of the rejected ones.
        reference_chosen: (B,), those of the chosen ones under the reference, without gradient.
        reference_rejected: (B,), likewise.
        beta: the paper's beta.

    Returns:
        The loss and the reward margin.
    """
    margins = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return DpoLoss(loss=-functional.logsigmoid(margins).mean(), margin=margins.detach().mean())


def _log_one_minus_exp(value: Tensor) -> Tensor:
    """log(1 - exp(value)) for value < 0, without cancellation near 0 or underflow far from it."""
    # A response that is certain (log-probability 0 in float32) has infinite odds; the largest finite ones do.
    value = value.clamp(max=-torch.finfo(torch.float32).eps)
    near = value > -0.6931471805599453
    # Both branches get values at which their gradient is finite: `where` would let a NaN through otherwise.
    small = torch.where(near, value, -0.5)
    large = torch.where(near, -1.0, value)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
