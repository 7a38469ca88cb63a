"""`train --auto`: round after round on fresh examples, one thing changed each time as the last verdict says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from personality.composition.opening import base_of
from personality.making.dose import highest_rate
from personality.making.ledger import only_fresh
from personality.making.training_job import TrainingJob
from personality.making.training_run import NoGoError, Trained, train_behavior
from personality.making.verdict import GENERAL_RATIO, Verdict
from personality.manifests.manifest import Manifest
from personality.manifests.repository import Repository
from personality.vectors.training.batches import general_needed
from personality.vectors.training.examples import read_examples
from personality.vectors.training.presets import needs_rejected, phases_of
from personality.vectors.training.run import InterruptedRunError
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.watch import DivergedError

FIRST_EXAMPLES = 20
_STEP = 2.0


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: from 1.
        change: what was changed since the round before, and why; empty for the first.
        examples: of the behavior, all fresh.
        rate: peak learning rate (of the first phase).
        general_ratio: general examples for each one of the behavior.
        trained: the run; None when it fell apart and nothing was stored.
        verdict: on it.
        advice: that goes with the verdict, or the error's message.
    """

    number: int
    change: str
    examples: int
    rate: float
    general_ratio: float
    trained: Trained | None
    verdict: Verdict
    advice: tuple[str, ...]

    @property
    def manifest(self) -> Manifest | None:
        """Of the vector that the round made."""
        return self.trained.manifest if self.trained is not None else None


@dataclass(frozen=True)
class AutoReport:
    """All rounds.

    Attributes:
        rounds: in order, at least one.
        best: the one to use: the right one, else the last that is too small and harms nothing; None when all do harm.
        ended: why there was no further round.
    """

    rounds: tuple[Round, ...]
    best: Round | None
    ended: str


@dataclass(frozen=True)
class _Plan:
    """What the next round gets.

    Attributes:
        examples, rate, general_ratio: of the round.
        change: in words.
        step: factor by which a rate is changed; it shrinks when the direction turns, so that rounds close in.
        direction: of the last change of dose: 1 up, -1 down, 0 none yet.
    """

    examples: int
    rate: float
    general_ratio: float
    change: str = ""
    step: float = _STEP
    direction: int = 0


def auto_train(
    repository: Repository,
    job: TrainingJob,
    rounds: int,
    *,
    tensorboard: Path | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[Any], None] | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> AutoReport:
    """Train up to so many times, each time from the base on examples never used, until a run is right.

    Too small: twice the examples, and when there are too few fresh ones a higher rate, up to `highest_rate`. Too
    large: a lower rate. Forgetting: general data up to 40%, then a lower rate. Each round's vector is stored like any
    other.

    Args:
        repository: where.
        job: of the first round; without `examples` it begins with 20.
        rounds: at most so many.
        tensorboard: folder for TensorBoard's event files, a folder in it for each round.
        on_stage: told what is being done.
        on_step: told of each training step.
        on_round: told of each finished round.

    Raises:
        DataError: for data that cannot be used, or no fresh examples to begin with.
        NoGoError: when the diagnosis advises against the first round.
        InterruptedRunError: somebody stopped a round; those before it are stored.
    """
    parameters = _parameters(repository)
    objective = phases_of(job.settings.method)[0]
    top = highest_rate(objective, parameters, lora=job.settings.lora_rank is not None)
    fresh = _fresh(repository, job)
    plan = _Plan(
        examples=job.examples or min(FIRST_EXAMPLES, max(fresh, 1)),
        rate=job.settings.rate_of(objective, parameters),
        general_ratio=job.settings.general_ratio,
    )
    done: list[Round] = []
    ended = "no further round was asked for"
    while len(done) < rounds:
        settings = _settings(job.settings, plan, parameters)
        own = job.model_copy(update={"examples": plan.examples, "fresh": True, "settings": settings})
        try:
            found = _round(repository, own, len(done) + 1, plan, tensorboard, on_stage, on_step)
        except NoGoError as error:
            if not done:
                raise
            ended = error.message
            break
        done.append(found)
        if on_round:
            on_round(found)
        if found.verdict == "right":
            ended = "the last round is right"
            break
        following = _next(found, plan, job, top, _fresh(repository, job))
        if isinstance(following, str):
            ended = following
            break
        plan = following
    right = [item for item in done if item.verdict == "right"]
    usable = right or [item for item in done if item.verdict == "too small"]
    return AutoReport(tuple(done), usable[-1] if usable else None, ended)


def _round(
    repository: Repository,
    job: TrainingJob,
    number: int,
    plan: _Plan,
    tensorboard: Path | None,
    on_stage: Callable[[str], None] | None,
    on_step: Callable[[Any], None] | None,
) -> Round:
    told = on_stage or (lambda stage: None)
    found = Round(number, plan.change, plan.examples, plan.rate, plan.general_ratio, None, "too large", ())
    try:
        trained = train_behavior(
            repository,
            job,
            tensorboard=tensorboard / f"round-{number}" if tensorboard is not None else None,
            on_stage=lambda stage: told(f"round {number}: {stage}"),
            on_step=on_step,
        )
    except InterruptedRunError as error:
        error.hint = (
            f"`persona train {job.behavior} --resume` finishes this round; `--auto` begins its rounds anew, with "
            "examples that are still fresh"
        )
        raise
    except DivergedError as error:
        return replace(found, advice=(error.message,))
    record = trained.manifest.making.training
    assert record is not None
    verdict: Verdict = record.verdict  # type: ignore[assignment]
    return replace(found, trained=trained, verdict=verdict, advice=record.advice)


def _next(found: Round, plan: _Plan, job: TrainingJob, top: float, fresh: int) -> _Plan | str:
    """What to do after a round that was not right, or why nothing that could be changed would mend it."""
    verdict = found.verdict
    if verdict == "unknown":
        return "there is nothing to judge by: " + "; ".join(found.advice)
    if verdict == "too large" and _one_sided(found):
        return "no smaller dose mends data without its other side: add examples with `side: push_back`"
    if fresh < plan.examples:
        return f"only {fresh} fresh examples are left, a round takes {plan.examples}"
    if verdict == "forgetting" and plan.general_ratio < GENERAL_RATIO and _general_for(job, plan.examples):
        why = f"general data {plan.general_ratio:.0%} → {GENERAL_RATIO:.0%}, since it was forgetting"
        return replace(plan, general_ratio=GENERAL_RATIO, change=why)
    up = verdict == "too small"
    # Doubling must leave as many again, or there would be no round to mend what it overdid.
    if up and plan.direction >= 0 and fresh >= 4 * plan.examples:
        more = 2 * plan.examples
        return replace(plan, examples=more, direction=1, change=f"{plan.examples} → {more} examples, since {verdict}")
    turned = plan.direction == (-1 if up else 1)
    step = math.sqrt(plan.step) if turned else plan.step
    rate = float(f"{min(plan.rate * step, max(top, plan.rate)) if up else plan.rate / step:.2g}")
    if rate == plan.rate:
        return f"too small at the highest rate to try, {rate:g}, and too few fresh examples ({fresh}) to use more"
    why = f"rate {plan.rate:g} → {rate:g}, since {'it was forgetting' if verdict == 'forgetting' else verdict}"
    return replace(plan, rate=rate, step=step, direction=1 if up else -1, change=why)


def _one_sided(found: Round) -> bool:
    """Whether a run without any sign of collapse was trained on one side alone."""
    if found.trained is None or found.trained.report is None or found.trained.report.sign is not None:
        return False
    sides = found.trained.report.sides
    return not sides.get("push_back") and not sides.get("unlabeled")


def _general_for(job: TrainingJob, examples: int) -> bool:
    """Whether there is general data for the larger share."""
    if job.general is None:
        return False
    return len(read_examples(job.general, need_rejected=False)) >= general_needed(examples, GENERAL_RATIO) + 1


def _fresh(repository: Repository, job: TrainingJob) -> int:
    """How many examples no vector of the behavior was trained on."""
    pairs = needs_rejected(job.settings.method) or job.contrastive
    examples = read_examples(job.data, need_rejected=pairs)[job.skip :]
    return len(only_fresh(repository, job.behavior, examples))


def _settings(settings: TrainSettings, plan: _Plan, parameters: int) -> TrainSettings:
    """The settings of a round."""
    values: dict[str, Any] = {"general_ratio": plan.general_ratio}
    if plan.general_ratio > settings.general_ratio:
        least = math.ceil(1 + 1 / plan.general_ratio - 1e-9)  # room for both kinds in every batch
        values["batch_size"] = max(settings.batch_size, least)
    return settings.at_rate(plan.rate, parameters).model_copy(update=values)


def _parameters(repository: Repository) -> int:
    return sum(math.prod(spec.shape) for spec in base_of(repository).specs.values())
