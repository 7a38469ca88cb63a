"""What the vectors of two versions do at one scale after another, where their manifests say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personality.manifests.errors import NotFoundError
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.versions.recipe import manifest_of


@dataclass(frozen=True)
class ManifestCurve:
    """One vector's dose and response.

    Attributes:
        label: such as `candid@1`.
        scales: in rising order.
        responses: by what was measured, a share from 0 to 1 at each scale.
        coherent_to: greatest scale up to which text holds together; None when it does at none.
        before, after: the scale in either version; None where it is not used.
    """

    label: str
    scales: tuple[float, ...]
    responses: dict[str, tuple[float, ...]]
    coherent_to: float | None
    before: float | None
    after: float | None


def manifest_curves(repository: Repository, before: Personality, after: Personality) -> list[ManifestCurve]:
    """The curves of all vectors that either version uses, in order of behavior."""
    uses: dict[str, Use] = {use.vector: use for use in (*before.uses, *after.uses)}
    found = []
    for vector, use in sorted(uses.items(), key=lambda item: (item[1].behavior, item[1].number)):
        try:
            manifest = manifest_of(repository, use)
        except NotFoundError:
            continue  # what is not there has no curve
        calibration = manifest.steering.calibration if manifest.steering else None
        if calibration is None or not calibration.curve:
            continue
        points = sorted(calibration.curve, key=lambda point: point.scale)
        names = [name for name in points[0].probes if all(name in point.probes for point in points)]
        responses = {name: tuple(point.probes[name] for point in points) for name in names}
        responses["repetition"] = tuple(point.repetition for point in points)
        found.append(
            ManifestCurve(
                label=use.label,
                scales=tuple(point.scale for point in points),
                responses=responses,
                coherent_to=calibration.coherent_to,
                before=_scale(before.uses, vector),
                after=_scale(after.uses, vector),
            )
        )
    return found


def _scale(uses: Sequence[Use], vector: str) -> float | None:
    return next((use.scale for use in uses if use.vector == vector), None)
