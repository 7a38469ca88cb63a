"""What one step did."""

from __future__ import annotations

from dataclasses import dataclass

from personality.vectors.training.presets import Objective


@dataclass(frozen=True)
class StepReport:
    """What one step did. Figures are those of the whole batch, before the step.

    Attributes:
        phase: its objective.
        step: from 1.
        steps: of the whole phase.
        loss: the objective, nats per token.
        nll: likelihood of chosen and general answers, nats per token.
        margin: mean log-odds ratio of chosen to rejected; None without pairs.
        reward_margin: what the preference objective raises: for DPO beta times how much more the chosen answer's
            log-probability has risen over the reference than the rejected one's; for ORPO lambda times the difference
            of their log-probabilities per token; None otherwise.
        chosen: mean log-probability per token of the behavior's chosen answers, nats.
        rejected: that of the rejected ones; None without pairs.
        chosen_gain, rejected_gain: the same minus what the model gave at the beginning of the phase.
        cos_in, cos_out: cosine of the step's update with the direction to avoid, before and after projection.
        kl: mean KL divergence per token from the base on held-out text, nats; None where it was not measured.
        lr: rate of this step.
        tokens: of the batch, prompts and rejected answers included, padding not.
        seconds: since the phase began, in all processes that worked on it one after the other.
    """

    phase: Objective
    step: int
    steps: int
    loss: float
    nll: float
    margin: float | None
    reward_margin: float | None
    chosen: float | None
    rejected: float | None
    chosen_gain: float | None
    rejected_gain: float | None
    cos_in: float | None
    cos_out: float | None
    kl: float | None
    lr: float
    tokens: int
    seconds: float
