"""One fine-tuning of a fresh base: toward the behavior, away from it, or beside a placebo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from personality.composition.composer import Composer
from personality.making.checkups import Checkups
from personality.making.prevention import Prevention
from personality.making.training_job import AvoidOptions
from personality.manifests.errors import PersonaError
from personality.model import load_composed, threads_for
from personality.vectors.task_vector import TaskVector
from personality.vectors.training.avoidance import Avoidance, trained_weights
from personality.vectors.training.directions import denoise, directions_of, random_directions
from personality.vectors.training.examples import Example
from personality.vectors.training.guard import Checkup
from personality.vectors.training.lora import attach_adapters, join_adapters
from personality.vectors.training.run import Callbacks, TrainingReport, fine_tune
from personality.vectors.training.run_log import RunLog
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.step_report import StepReport
from personality.vectors.training.watch import Snapshots


@dataclass(frozen=True)
class Arm:
    """A trained model with what the run says of it.

    Attributes:
        model: with the trained weights; PEFT's when adapters were trained.
        report: of the run.
        cosines: mean cosine of the updates with the direction to avoid, before and after projection; None without.
        avoided: names of the weights that have a part of that direction.
    """

    model: Any
    report: TrainingReport
    cosines: tuple[float, float] | None
    avoided: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """What every arm of a run shares.

    Attributes:
        composer: of the base alone.
        tokenizer: the base's.
        settings: hyper-parameters.
        general: general examples to mix in.
        checkups: compare a model in training with the base; None without general data.
        log: of the run.
        on_step: told of each step.
        resume: go on from checkpoints.
        prevention: acts on every model while it is trained; None for nothing.
    """

    composer: Composer
    tokenizer: Any
    settings: TrainSettings
    general: Sequence[Example]
    checkups: Checkups | None
    log: RunLog | None
    on_step: Callable[[StepReport], None] | None
    resume: bool
    prevention: Prevention | None = None

    def train(
        self,
        examples: Sequence[Example],
        folder: Path,
        avoid: Callable[[nn.Module], Avoidance] | None = None,
        snapshots: Snapshots | None = None,
    ) -> Arm:
        """Train a fresh base.

        Args:
            examples: to learn.
            folder: for checkpoints.
            avoid: makes what keeps the updates out of a direction.
            snapshots: takes states elsewhere while the run goes on.
        """
        model = fresh_model(self.composer, self.settings)
        folder.mkdir(parents=True, exist_ok=True)
        avoided: list[str] = []

        def make(trained: nn.Module) -> Avoidance:
            assert avoid is not None
            made = avoid(trained)
            avoided.extend(made.names)
            return made

        checkup: Callable[[nn.Module, int], Checkup] | None = None
        if self.checkups is not None:
            checkup = self.checkups.measure
        if checkup is not None and self.prevention is not None:
            checkup = self.prevention.paused(checkup)
        callbacks = Callbacks(
            checkup=checkup,
            avoid=make if avoid is not None else None,
            on_step=self.on_step,
            log=self.log,
            snapshots=snapshots,
        )
        with threads_for(model), self.prevention.acting(model) if self.prevention is not None else nullcontext():
            report = fine_tune(
                model,
                self.tokenizer,
                examples,
                self.general,
                self.settings,
                work_dir=folder,
                callbacks=callbacks,
                resume=self.resume,
            )
        pairs = [(step.cos_in, step.cos_out) for step in report.reports if step.cos_in is not None]
        cosines = None
        if pairs:
            cosines = (sum(x for x, _ in pairs) / len(pairs), sum(y or 0.0 for _, y in pairs) / len(pairs))
        return Arm(model, report, cosines, tuple(avoided))


def fresh_model(composer: Composer, settings: TrainSettings) -> Any:
    """The base, ready to be trained: in the dtype that the settings mean, with adapters where they ask for them."""
    model = load_composed(composer, torch.float32 if settings.weights == "float32" else torch.bfloat16)
    return attach_adapters(model, settings) if settings.lora_rank is not None else model


def swapped(examples: Sequence[Example]) -> list[Example]:
    """The opposite lesson: what was chosen is rejected, and the other way round."""
    return [
        replace(example, chosen=example.rejected, rejected=example.chosen)
        for example in examples
        if example.rejected is not None
    ]


def make_avoidance(
    vector: TaskVector, composer: Composer, options: AvoidOptions, model: nn.Module, *, placebo_seed: int | None = None
) -> Avoidance:
    """What keeps a model's updates out of a vector's direction.

    Args:
        vector: the direction.
        composer: of the base, for denoising.
        options: how.
        model: whose trained parameters require gradients by now.
        placebo_seed: use a random direction of the same norms instead.
    """
    tensors = directions_of(vector, trained_weights(model)).tensors
    if options.top is not None:
        tensors = {
            name: denoise(tensor, composer.base.tensor(name).float(), options.top) for name, tensor in tensors.items()
        }
    if placebo_seed is not None:
        tensors = random_directions(tensors, placebo_seed)
    return Avoidance(tensors, model, one_sided=not options.two_sided, keep_magnitude=options.keep_magnitude)


@torch.no_grad()
def subtract(toward: Any, away: Any, base: Any | None) -> None:
    """Make of two trained models the base plus the difference of what they learned, in `toward`.

    W = W_base + (W_toward − W_away): arXiv 2511.05408's contrastive weight vector on the base.

    Args:
        toward: trained toward the behavior; it gets the result.
        away: trained away from it.
        base: as both were before; None when they carry adapters, whose factors are put side by side, the second ones
            negated.
    """
    if base is None:
        join_adapters(toward, away)
        return
    opposite, start = dict(away.named_parameters()), dict(base.named_parameters())
    for name, parameter in toward.named_parameters():
        difference = parameter.float() - opposite[name].float()
        parameter.copy_((start[name].float() + difference).to(parameter.dtype))


def save_weights(model: Any, folder: Path) -> None:
    """Write the trained weights, or the adapter, as transformers and PEFT do.

    Raises:
        PersonaError: when the disk is full.
    """
    try:
        if hasattr(model, "peft_config"):
            # No embeddings are trained, and PEFT would ask the network whether they were resized.
            model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            model.save_pretrained(str(folder))
    except (OSError, SafetensorError) as error:
        raise PersonaError(
            f"cannot write the trained weights to {folder}: {error}",
            "free some room (four bytes a parameter are needed for a moment), then give the same command again: "
            "the training itself is kept",
        ) from error
