"""A forecast of how a recipe's vectors get in each other's way, from the vectors alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from personality.changing_model import ChangingModel
from personality.composition.composer import Composer
from personality.composition.opening import composer_of
from personality.composition.steering_diff import Interference, interference
from personality.evaluation.suite import Probe, read_suite
from personality.forecast.figures import Pair, UseFigures, pairs_of, strain, use_figures
from personality.forecast.parts import RecipeParts, density_of
from personality.forecast.steering_against import SteeringAgainst, steering_against
from personality.forecast.sums import PartSums, layer_sums
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.vectors.task_vector import TaskVector, open_task_vector


@dataclass(frozen=True)
class Forecast:
    """What is foreseen for a recipe; docs/check.md has the formulas and how far they can be trusted.

    Attributes:
        personality: the recipe.
        density: at which vectors were trimmed, unless a use has its own.
        strain: see `figures.strain`: foretells the loss of general ability.
        uses: task vectors in use.
        pairs: of them.
        directions: how steering vectors relate where they share a layer.
        against: steering against task vectors.
        unread: why steering was not held against the task vectors; empty when it was, or had not to be.
    """

    personality: Personality
    density: float
    strain: float
    uses: tuple[UseFigures, ...]
    pairs: tuple[Pair, ...]
    directions: tuple[Interference, ...] = ()
    against: tuple[SteeringAgainst, ...] = ()
    unread: str = ""

    @property
    def worst(self) -> UseFigures | None:
        """The task vector that acts at the least scale; None when fewer than two are in use."""
        return min(self.uses, key=lambda use: use.kept * abs(use.scale)) if len(self.uses) > 1 else None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "recipe": [str(use) for use in self.personality.uses],
            "composition": self.personality.composition.as_json(),
            "density": self.density,
            "strain": self.strain,
            "uses": [asdict(use) for use in self.uses],
            "pairs": [_pair_json(pair) for pair in self.pairs],
            "directions": [asdict(item) for item in self.directions],
            "steering_against": [asdict(item) for item in self.against],
            "unread": self.unread,
            "worst": self.worst.label if self.worst else None,
        }


class Forecaster:
    """Forecasts recipes on one repository's base.

    Args:
        repository: where.
        on_tensor: called before each tensor with its index, the number of tensors and its name.
    """

    def __init__(self, repository: Repository, *, on_tensor: Callable[[int, int, str], None] | None = None) -> None:
        self.repository = repository
        self._on_tensor = on_tensor

    def forecast(self, personality: Personality, *, run: bool = True) -> Forecast:
        """Everything that can be told of a recipe before it is built.

        Args:
            personality: the recipe; it need not be a version.
            run: load the base and put the probes' prompts through it where steering and task vectors meet.

        Raises:
            IncompatibleError, NotFoundError, CorruptError: when it cannot be composed.
            DataError: probes that cannot be read, where they are needed.
        """
        composer = composer_of(self.repository, personality)
        uses, layers = self._sums(composer, personality)
        total = sum(layers.values(), PartSums.zeros(len(uses)))
        against, unread = self._against(composer, personality, uses, run=run)
        return Forecast(
            personality=personality,
            density=density_of(personality.composition),
            strain=strain(uses, total),
            uses=tuple(use_figures(uses, total)),
            pairs=tuple(pairs_of(uses, total, layers)),
            directions=tuple(interference(composer.steering)),
            against=tuple(against),
            unread=unread,
        )

    def sums(self, personality: Personality) -> tuple[list[Use], dict[int | None, PartSums]]:
        """The uses of task vectors, and the sums behind a forecast, by layer; arguments and errors as `forecast`."""
        return self._sums(composer_of(self.repository, personality), personality)

    def _sums(self, composer: Composer, personality: Personality) -> tuple[list[Use], dict[int | None, PartSums]]:
        steered = {item.label for item in composer.steering}
        uses = [use for use in personality.uses if use.scale and use.label not in steered]
        vectors: dict[str, TaskVector] = {
            use.vector: open_task_vector(self.repository, use.vector, use.label, base=composer.base) for use in uses
        }
        parts = RecipeParts(composer.base, personality.model_copy(update={"uses": tuple(uses)}), vectors)
        return uses, layer_sums(parts.tensors(self._on_tensor), len(uses))

    def _against(
        self, composer: Composer, personality: Personality, uses: list[Use], *, run: bool
    ) -> tuple[list[SteeringAgainst], str]:
        if not composer.steering or not uses:
            return [], ""
        if not run:
            return [], "the model was not to be run"
        probes = self._probes(personality)
        if not probes:
            return [], "there are no probes whose prompts could be read"
        return steering_against(ChangingModel(self.repository), personality, composer.steering, probes), ""

    def _probes(self, personality: Personality) -> list[Probe]:
        """Those of the behaviors in use; where they have none, of general ability."""
        known = self.repository.behaviors()
        names = [use.behavior for use in personality.uses if use.behavior in known]
        probes = read_suite(self.repository, names)
        own = [probe for probe in probes if probe.name.partition(".")[0] in names]
        return own or probes


def _pair_json(pair: Pair) -> dict[str, Any]:
    layers = [{"layer": layer, **asdict(figures)} for layer, figures in pair.layers.items()]
    return {
        "first": pair.first,
        "second": pair.second,
        **asdict(pair.whole),
        "layers": layers,
        "fights": pair.fights,
    }
