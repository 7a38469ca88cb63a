"""One cell of a sweep: a fresh base trained on so many examples at one rate, measured, and forgotten again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from personality.composition.composer import Composer
from personality.evaluation.measure import measure
from personality.evaluation.suite import Probe
from personality.making.arm import Bench
from personality.making.checkups import Checkups
from personality.making.health import Health, measure_health
from personality.manifests.atomic import temporary_beside
from personality.manifests.evaluation import ProbeResult
from personality.manifests.record import Frozen
from personality.model import threads_for
from personality.vectors.training.examples import Example, count_sides
from personality.vectors.training.guard import Sign
from personality.vectors.training.presets import phases_of
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.step_report import StepReport
from personality.vectors.training.watch import DivergedError


class Measures(Frozen):
    """What a model does, on the probes and on held-out general text.

    Attributes:
        probes: results, in the order of the probes.
        health: on held-out general text; None when there was none.
    """

    probes: tuple[ProbeResult, ...]
    health: Health | None


class Cell(Frozen):
    """What one dose did.

    Attributes:
        examples: of the behavior.
        rate: peak learning rate (of the first phase).
        settings: as used, learning rates filled in.
        sides: the examples by side.
        steps: that count.
        seconds: of training.
        stopped: the guard's sign, as JSON; None for a whole run.
        measures: after training; None when the run fell apart with nothing to keep.
    """

    examples: int
    rate: float
    settings: TrainSettings
    sides: dict[str, int]
    steps: int
    seconds: float
    stopped: dict[str, Any] | None
    measures: Measures | None

    @property
    def sign(self) -> Sign | None:
        """The guard's sign, if it stopped the run."""
        return Sign(**self.stopped) if self.stopped is not None else None


@dataclass(frozen=True)
class Trial:
    """What every cell of a sweep shares.

    Attributes:
        composer: of the base alone.
        tokenizer: the base's.
        parameters: number of the base's parameters.
        probes: what to measure.
        held_out: general examples that no cell is trained on.
        checkups: for the guard; None for none.
        scratch: folder for checkpoints, which are removed again.
    """

    composer: Composer
    tokenizer: Any
    parameters: int
    probes: list[Probe]
    held_out: Sequence[Example]
    checkups: Checkups | None
    scratch: Path

    def measure(self, model: Any, step: int | None = None) -> Measures:
        """Measure a model.

        Args:
            model: in evaluation mode.
            step: after which it is; None for the base, which is not compared with itself.
        """
        with threads_for(model):
            kl = None
            if self.checkups is not None and step is not None:
                kl = self.checkups.measure(model, step).kl
            health = measure_health(model, self.tokenizer, self.held_out, kl)
            return Measures(probes=tuple(measure(model, self.tokenizer, self.probes)), health=health)

    def cell(
        self,
        examples: Sequence[Example],
        general: Sequence[Example],
        settings: TrainSettings,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> Cell:
        """Train a fresh base and measure it.

        Args:
            examples: of the behavior.
            general: to mix in.
            settings: with the learning rate of the cell.
            on_step: told of each step.

        Raises:
            DataError: data that cannot be used.
            InterruptedRunError: somebody stopped it.
        """
        sides = count_sides(examples)
        folder = temporary_beside(self.scratch / "cell")
        folder.mkdir(parents=True)
        bench = Bench(
            composer=self.composer,
            tokenizer=self.tokenizer,
            settings=settings,
            general=general,
            checkups=self.checkups,
            log=None,
            on_step=on_step,
            resume=False,
        )
        try:
            arm = bench.train(examples, folder)
        except DivergedError as error:
            lost = Sign("nothing-left", 0, 0.0, 0.0, error.message)
            return _cell(len(examples), self._filled(settings), sides, 0, 0.0, lost, None)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        report = arm.report
        measures = self.measure(arm.model.eval(), report.steps)
        return _cell(len(examples), report.settings, sides, report.steps, report.seconds, report.sign, measures)

    def _filled(self, settings: TrainSettings) -> TrainSettings:
        rate = settings.rate_of(phases_of(settings.method)[0], self.parameters)
        return settings.model_copy(update={"lr": rate})


def _cell(
    examples: int,
    settings: TrainSettings,
    sides: dict[str, int],
    steps: int,
    seconds: float,
    sign: Sign | None,
    measures: Measures | None,
) -> Cell:
    assert settings.lr is not None
    return Cell(
        examples=examples,
        rate=settings.lr,
        settings=settings,
        sides=sides,
        steps=steps,
        seconds=round(seconds, 3),
        stopped=asdict(sign) if sign is not None else None,
        measures=measures,
    )
