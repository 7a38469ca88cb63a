"""How goals went from version to version, as far as it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personality.evaluation.goals import Goal, goals_of
from personality.evaluation.measured import Measured
from personality.evaluation.probe import Probe
from personality.manifests.evaluation import Figure, ProbeResult
from personality.manifests.repository import Repository
from personality.manifests.version import Version


@dataclass(frozen=True)
class Point:
    """One goal at one version.

    Attributes:
        version: its id.
        value: the goal's figure, 0 to 1; None where it was not measured with the probes of now.
        change: paired difference from the version before that was measured; None for the first.
    """

    version: str
    value: Figure | None
    change: Figure | None


def trends(repository: Repository, versions: Sequence[Version], probes: Sequence[Probe]) -> dict[str, list[Point]]:
    """Each goal of several probes (behaviors, `push_back`, `general`) along versions; nothing is measured.

    A version's figures are those that were measured with the probes as they are now, in this environment or, where
    only there, in another.

    Args:
        repository: where.
        versions: oldest first.
        probes: of the suite.
    """
    store = Measured(repository)
    known = [_known(repository, store, version, probes) for version in versions]
    goals = {name: goal for name, goal in goals_of(probes).items() if "." not in name}
    return {name: _points(goal, versions, known) for name, goal in goals.items()}


def _known(
    repository: Repository, store: Measured, version: Version, probes: Sequence[Probe]
) -> dict[str, ProbeResult]:
    digests = {probe.name: probe.digest for probe in probes}
    found = {
        result.probe: result
        for evaluation in repository.evaluations(version.id)
        for result in evaluation.results
        if result.digest and digests.get(result.probe) == result.digest
    }
    return found | store.recall(version.personality.id, probes)


def _points(goal: Goal, versions: Sequence[Version], known: Sequence[dict[str, ProbeResult]]) -> list[Point]:
    points: list[Point] = []
    before: list[ProbeResult] = []
    for version, results in zip(versions, known, strict=True):
        if not set(goal.probes) <= set(results):
            points.append(Point(version.id, None, None))
            continue
        now = [results[name] for name in goal.probes]
        points.append(Point(version.id, goal.value(now), goal.change(before, now) if before else None))
        before = now
    return points
