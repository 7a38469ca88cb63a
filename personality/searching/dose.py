"""`persona dose`: what one behavior's scale does, and in which range the text holds together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from personality.evaluation.evaluate import base_alone
from personality.evaluation.goals import GENERAL, PUSH_BACK, Goal, find_goal, goals_of
from personality.evaluation.health import measure_health
from personality.evaluation.suite import Probe, Row, general_text, read_suite
from personality.evaluation.workbench import Workbench
from personality.manifests.errors import FallenApartError, UsageError
from personality.manifests.evaluation import Figure, HealthResult, ProbeResult
from personality.manifests.manifest import Manifest
from personality.manifests.names import VectorLabel
from personality.manifests.personality_record import Personality, Use
from personality.manifests.repository import Repository
from personality.manifests.transaction import commit
from personality.manifests.version import Version
from personality.proving.dose_response import PERPLEXITY_FACTOR, REPETITION_RISE
from personality.searching.bench import OnProbe
from personality.versions.recipe import manifest_of, use_vector

GENERAL_FALL = 0.02
"""Share of general ability that a dose may cost."""

_TEXTS = 16


@dataclass(frozen=True)
class ScalePoint:
    """What one scale does; the other uses stay as they are.

    Attributes:
        scale: of the behavior.
        values: of the goals, 0 to 1, by name; empty where the model has fallen apart.
        changes: the same, paired, against scale 0.
        repetition: share of repeated 4-grams in greedy replies; None without general text.
        perplexity: of held-out general text; None as well.
        faults: why the text does not hold together; empty where it does.
    """

    scale: float
    values: dict[str, Figure]
    changes: dict[str, Figure]
    repetition: float | None
    perplexity: float | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class DoseCurve:
    """A behavior at one scale after another.

    Attributes:
        label: of the vector, such as `listening@1`.
        goal: what the behavior is for.
        points: in rising order.
        coherent: the range around the smallest dose in which every point holds together; None when there is none.
        suggested: the part of it in which an effect was shown; None when none was, or nothing tells whether the text
            holds together.
    """

    label: str
    goal: str
    points: tuple[ScalePoint, ...]
    coherent: tuple[float, float] | None
    suggested: tuple[float, float] | None


def parse_span(text: str) -> tuple[float, float]:
    """Read `0..1.5`.

    Raises:
        UsageError: when the text is no span of finite numbers, the lower one first.
    """
    low, dots, high = text.partition("..")
    try:
        span = float(low), float(high)
    except ValueError:
        span = math.nan, math.nan
    if not dots or not all(map(math.isfinite, span)) or span[0] >= span[1]:
        raise UsageError(f"`{text}` is not a span of scales", "write the lowest and the highest, such as `0..1.5`")
    return span


def dose(
    repository: Repository,
    label: VectorLabel,
    span: tuple[float, float],
    version: Version,
    *,
    points: int = 7,
    goal: str = "",
    rows: int | None = None,
    on_point: Callable[[int, float], None] | None = None,
    on_probe: OnProbe | None = None,
) -> DoseCurve:
    """Measure a behavior's scales in a version's recipe.

    Text holds together when greedy replies repeat no more than a fifth more of their 4-grams than at scale 0, held-out
    general text is no more than twice as perplexing, and general ability has fallen by no more than 2 points.

    Args:
        repository: where; everything is composed in memory, and what the probes gave before is not measured again.
        label: of the vector; without a number the one that the version uses, else the newest.
        span: lowest and highest scale.
        version: whose recipe; the vector is added where it is not in use.
        points: scales, evenly spaced, both ends included.
        goal: what the behavior is for; empty for its own probes.
        rows: at most so many rows of each probe.
        on_point: called before each scale with its number and the scale.
        on_probe: see `measure`.

    Raises:
        UsageError: for fewer than 2 points, or a behavior without probes.
        NotFoundError: when there is no such vector.
        FallenApartError: when the recipe falls apart without the vector.
    """
    if points < 2:
        raise UsageError(f"a curve has at least 2 points, not {points}", "such as `--points 7`")
    use = _use(repository, label, version.personality)
    known = goals_of(probes := read_suite(repository, rows=rows))
    main = find_goal(known, goal or use.behavior)
    goals = [main, *(known[name] for name in (PUSH_BACK, GENERAL) if name in known and name != main.name)]
    names = {name for item in goals for name in item.probes}
    used = [probe for probe in probes if probe.name in names]
    bench = _Bench(repository, used, on_probe)
    found = []
    for number in range(points):
        scale = round(span[0] + (span[1] - span[0]) * number / (points - 1), 6)
        if on_point:
            on_point(number, scale)
        found.append(_point(bench, goals, version.personality, use, scale))
    coherent = coherent_range(found)
    suggested = None
    if coherent and bench.texts:
        acting = [
            point.scale
            for point in found
            if coherent[0] <= point.scale <= coherent[1] and point.scale and point.changes[main.name].shows_change
        ]
        suggested = (min(acting), max(acting)) if acting else None
    return DoseCurve(use.label, main.name, tuple(found), coherent, suggested)


def suggest(repository: Repository, label: str, span: tuple[float, float]) -> Manifest:
    """Write a range into a vector's manifest as the suggested one; `persona undo` takes it back.

    Args:
        repository: where.
        label: of the vector, with its number.
        span: lowest and highest scale.
    """
    with repository.writing():
        use = use_vector(repository, VectorLabel.parse(label), 1.0)
        manifest = manifest_of(repository, use).model_copy(update={"suggested_scale": span})
        text = manifest.to_bytes().decode()
        commit(repository, f"dose {label} {span[0]:g}..{span[1]:g}", {f"manifests/{manifest.id}.json": text})
    return manifest


def coherent_range(points: Sequence[ScalePoint]) -> tuple[float, float] | None:
    """From the smallest dose upwards and downwards, as far as every point holds together."""
    order = sorted(points, key=lambda point: abs(point.scale))
    if not order or order[0].faults:
        return None
    low = high = order[0].scale
    for point in sorted(points, key=lambda point: point.scale):
        if point.scale > high:
            if point.faults:
                break
            high = point.scale
    for point in sorted(points, key=lambda point: -point.scale):
        if point.scale < low:
            if point.faults:
                break
            low = point.scale
    return low, high


class _Bench(Workbench):
    """A workbench that measures coherence too."""

    def __init__(self, repository: Repository, probes: Sequence[Probe], on_probe: OnProbe | None) -> None:
        super().__init__(repository, probes, on_probe=on_probe)
        self.texts = general_text(repository)[:_TEXTS]
        self._prompts: list[Row] = [row for row in self.texts if row.prompt] or [
            row for probe in probes for row in probe.rows
        ][:_TEXTS]
        self._health: dict[str, HealthResult] = {}

    def look(self, personality: Personality) -> tuple[tuple[ProbeResult, ...], HealthResult | None]:
        """What the probes give, and how general text and replies hold together; None without general text."""
        if self.texts and personality.id not in self._health:
            base = base_alone(personality)
            self._health[personality.id] = measure_health(self, base, personality, self.texts, self._prompts)
        return self.measure(personality), self._health.get(personality.id)


def _use(repository: Repository, label: VectorLabel, personality: Personality) -> Use:
    present = personality.use_of(label.behavior)
    if present is not None and label.number in (None, present.number):
        return present
    return use_vector(repository, label, 1.0)


def _point(bench: _Bench, goals: Sequence[Goal], personality: Personality, use: Use, scale: float) -> ScalePoint:
    before, well = bench.look(personality.with_use(use.model_copy(update={"scale": 0.0})))
    try:
        after, now = bench.look(personality.with_use(use.model_copy(update={"scale": scale + 0.0})))
    except FallenApartError:
        return ScalePoint(scale, {}, {}, None, None, ("the model predicts nothing any more",))
    changes = {goal.name: goal.change(before, after) for goal in goals}
    faults = []
    if GENERAL in changes and changes[GENERAL].value < -GENERAL_FALL - 1e-9:
        faults.append(f"general ability {changes[GENERAL].value * 100:+.1f} points")
    if well is not None and now is not None:
        if now.nll.value > well.nll.value + math.log(PERPLEXITY_FACTOR):
            faults.append(f"general text {math.exp(now.nll.value - well.nll.value):.1f} times as perplexing")
        if now.repetition.value > well.repetition.value + REPETITION_RISE:
            faults.append(f"{now.repetition.value:.0%} of what it writes repeats itself")
    return ScalePoint(
        scale,
        {goal.name: goal.value(after) for goal in goals},
        changes,
        now.repetition.value if now else None,
        math.exp(now.nll.value) if now else None,
        tuple(faults),
    )
