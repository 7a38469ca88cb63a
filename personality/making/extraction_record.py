"""Directions read from one contrast, and which of them are to act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from personality.making.contrasts import RawPairs
from personality.making.extraction_job import ExtractionJob
from personality.manifests.evaluation import Figure
from personality.manifests.repository import Repository
from personality.manifests.steering_record import (
    Calibration,
    Condition,
    Contrast,
    LayerFigures,
    Positions,
    Proof,
    SteeringRecord,
)
from personality.proving.calibration import Calibrated
from personality.proving.proof import share_of
from personality.proving.redundancy import redundancy
from personality.vectors.extraction.directions import Extraction
from personality.vectors.extraction.reading import Read
from personality.vectors.extraction.separation import Separation
from personality.vectors.steering.steering_file import open_steering
from personality.vectors.steering.steering_vector import SteeringVector


@dataclass(frozen=True)
class Found:
    """Directions read from one contrast, and how well they tell held-out texts apart.

    Attributes:
        context, read: which contrast.
        extraction: the directions.
        learned: how well they tell the texts apart that they were read from; by this directions are chosen.
        separation: of the held-out texts, by which they are proven.
        degenerate: pairs that say nothing, one line each.
    """

    context: Literal["answers", "shots", "system", "texts", "version"]
    read: Read
    extraction: Extraction
    learned: Separation
    separation: Separation
    degenerate: tuple[str, ...]

    @property
    def name(self) -> str:
        """Such as `shots/divergence`."""
        return f"{self.context}/{self.read}"

    @property
    def merit(self) -> Tensor:
        """float32 (L,): share of texts on their side of the middle, times the differences' consistency."""
        return self.apart * self.extraction.consistency.clamp_min(0)

    @property
    def apart(self) -> Tensor:
        """float32 (L,): share of the texts that they were read from on their side of the middle."""
        return self.learned.correct / self.learned.texts

    def separated(self, layer: int) -> Figure:
        """Share of held-out texts on their side of the middle."""
        return share_of(int(self.separation.correct[layer]), self.separation.texts)


@dataclass(frozen=True)
class Choice:
    """What is to act, where, and how strongly it is to be used.

    Attributes:
        found: the directions.
        positions, layers: where they act.
        scale: at which they are proven and recommended.
        rows: of the search, best first; empty without one.
    """

    found: Found
    positions: Positions
    layers: tuple[int, ...]
    scale: float
    rows: tuple[dict[str, Any], ...]


def other_vectors(repository: Repository, behavior: str) -> list[SteeringVector]:
    """The steering vectors of other behaviors whose tensors are here.

    Raises:
        CorruptError: when one is damaged.
    """
    return [
        open_steering(repository, item.id, item.label)
        for item in repository.manifests()
        if item.kind == "steering" and item.behavior != behavior and repository.vector_path(item.id).is_file()
    ]


def layer_figures(
    found: Found, others: Sequence[SteeringVector], calibrated: Calibrated, effects: Mapping[int, float]
) -> tuple[LayerFigures, ...]:
    """What each layer's direction looks like, also beside the repository's other steering vectors."""
    extraction = found.extraction
    return tuple(
        LayerFigures(
            layer=layer,
            strength=float(extraction.strength[layer]),
            activation=float(extraction.activation_norm[layer]),
            consistency=float(extraction.consistency[layer]),
            separation=found.separated(layer),
            spectrum=tuple(round(float(share), 6) for share in extraction.spectrum[layer]),
            redundancy=redundancy(direction, [other.tensors[layer] for other in others if layer in other.tensors]),
            coefficient=calibrated.coefficients.get(layer),
            reached=calibrated.reached.get(layer),
            effect=effects.get(layer),
        )
        for layer, direction in enumerate(extraction.directions)
    )


def steering_record(
    job: ExtractionJob,
    raw: RawPairs,
    choice: Choice,
    figures: tuple[LayerFigures, ...],
    condition: Condition | None,
    calibration: Calibration,
    proof: Proof | None,
) -> SteeringRecord:
    """The steering part of the manifest."""
    found = choice.found
    flips = {where: None for layer in choice.layers for where in found.separation.flips(layer)}
    return SteeringRecord(
        positions=choice.positions,
        mode=job.mode,
        layers=choice.layers,
        condition=condition,
        contrast=Contrast(
            format=raw.file.form,
            context=found.context,
            read=found.read,
            method=job.method,
            denoise=job.denoise,
            shots=job.shots if found.context == "shots" else None,
            pairs=found.extraction.pairs,
            held_out=found.separation.pairs,
            degenerate=found.degenerate,
            flips=tuple(flips),
            seed=job.seed,
        ),
        figures=figures,
        proof=proof,
        calibration=calibration,
        search=choice.rows,
    )
