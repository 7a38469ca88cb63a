"""Preventative steering: an unwanted trait's direction acts while a behavior is trained, so that the weights need not
learn the trait.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

from torch import nn

from personality.making.training_job import PreventOptions, TrainingJob
from personality.manifests.errors import UsageError
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import LayerRange
from personality.manifests.repository import Repository
from personality.vectors.steering.hooks import SteeringHandle, attach
from personality.vectors.steering.injection import Injection, injections
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.training.guard import Checkup
from personality.versions.recipe import own_steering


class Prevention:
    """Directions that act on a model in training, and only then.

    Chen et al. 2025 (arXiv 2507.21509, section on preventative steering): the direction supplies what the data would
    pull the activations toward, so gradient descent has no reason to store it in the weights. DPO's reference is the
    base with it, so that training begins at no difference. What is checked, measured and saved is the model without it,
    as it will be served.

    Args:
        given: what acts.
    """

    def __init__(self, given: tuple[Injection, ...]) -> None:
        self._given = given
        self._handle: SteeringHandle | None = None

    @contextlib.contextmanager
    def acting(self, model: nn.Module) -> Iterator[None]:
        """Steer the model inside the block; nothing stays behind, whatever happens in it."""
        self._handle = attach(model, self._given)
        try:
            yield
        finally:
            self._handle.remove()
            self._handle = None

    def paused(self, checkup: Callable[[nn.Module, int], Checkup]) -> Callable[[nn.Module, int], Checkup]:
        """A checkup of the model without what steers it in training.

        The guard compares with the base, and both are to be what is served: with the direction acting the two would
        lie apart from the first step on, and what the weights learn would be hidden.
        """

        def look(model: nn.Module, step: int) -> Checkup:
            if self._handle is None:
                return checkup(model, step)
            self._handle.remove()
            try:
                return checkup(model, step)
            finally:
                self._handle = attach(model, self._given)

        return look


def make_prevention(repository: Repository, job: TrainingJob) -> Prevention | None:
    """What a job wants to have acting while it trains; None when it wants nothing.

    Raises:
        NotFoundError, CorruptError: the vector is missing or damaged.
        IncompatibleError: it has no direction for one of the layers.
        UsageError: it would not act as it does when a whole text is put through.
    """
    options = job.prevent
    if options is None:
        return None
    vector = open_steering(repository, options.vector, options.label)
    if vector.gate is not None and vector.positions == "all" and job.settings.context == "frozen":
        raise UsageError(
            f"`{options.label}` acts at every position of the prompts that pass its condition, which looks at their "
            "end; a frozen context is read before that",
            "train with `--context full`",
        )
    return Prevention(injections(vector, options.scale, options.layers, options.label))


def prevent_options(
    repository: Repository, label: VectorLabel, scale: float = 1.0, layers: LayerRange | None = None
) -> PreventOptions:
    """Options for a steering vector of the repository.

    Raises:
        NotFoundError: there is no such vector.
        UsageError: it is a task vector, or the scale would switch it off.
        IncompatibleError: it was made for another base.
    """
    manifest = own_steering(repository, label)
    if not math.isfinite(scale) or scale == 0:
        raise UsageError(f"a direction at scale {scale:g} prevents nothing", "give a scale such as `1`")
    return PreventOptions(vector=manifest.id, label=manifest.label, scale=scale, layers=layers)
