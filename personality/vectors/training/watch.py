"""What looks after a phase of training while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from personality.manifests.errors import PersonaError
from personality.vectors.training.avoidance import Avoidance
from personality.vectors.training.guard import Checkup, CollapseGuard, Sign
from personality.vectors.training.step_report import StepReport


class DivergedError(PersonaError):
    """Training left the finite numbers, or collapsed before anything worth keeping."""

    kind = "diverged"

    def __init__(self, message: str, hint: str = "", *, step: int = 0) -> None:
        super().__init__(message, hint)
        self.step = step


@dataclass(frozen=True)
class Snapshots:
    """Who takes states of a run elsewhere while it goes on.

    Attributes:
        take: called in the first process with the model, the report of the step behind it, and the guard's warning
            where it has one; after that state was checked and its checkpoint is on the disk.
        every: steps between two of them, each with a checkup and a checkpoint of its own, and the last step besides;
            None for every checkpoint that is written anyway.
    """

    take: Callable[[nn.Module, StepReport, Sign | None], None]
    every: int | None = None

    def due(self, step: int, steps: int) -> bool:
        """Whether the state after a step of a phase of so many is wanted."""
        return self.every is not None and (step % self.every == 0 or step == steps)


@dataclass(frozen=True)
class Watch:
    """What looks after a phase while it runs; each part may be missing.

    Attributes:
        guard: judges every step and every checkup.
        checkup: measures the model after a given number of steps.
        avoidance: keeps updates out of a direction.
        on_step: gets the report of each step.
        on_checkup: gets each checkup.
        snapshots: takes states elsewhere.
    """

    guard: CollapseGuard | None = None
    checkup: Callable[[nn.Module, int], Checkup] | None = None
    avoidance: Avoidance | None = None
    on_step: Callable[[StepReport], None] | None = None
    on_checkup: Callable[[Checkup], None] | None = None
    snapshots: Snapshots | None = None
