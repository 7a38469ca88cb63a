"""A difference made by hand, with text of users that tries to be HTML wherever users write text."""

from __future__ import annotations

from collections.abc import Sequence

from personality.composition.steering_diff import SteeringDiff
from personality.composition.weight_diff import LayerDiff, Owner, WeightDiff
from personality.difference.difference import Difference, MeasuredChange, Side
from personality.difference.manifest_curve import ManifestCurve
from personality.difference.transcripts import ScoredReply, Transcript
from personality.evaluation.evaluate import compare_effects
from personality.evaluation.intervals import mean, share
from personality.evaluation.suite import Turn
from personality.manifests.base_identity import BaseIdentity
from personality.manifests.evaluation import Evaluation, ProbeResult
from personality.manifests.personality_record import Personality, Use
from personality.manifests.version import Version
from personality.versions.recipe import compare_recipes

NASTY = "<script>alert('x')</script><img src=http://example.org/x.png onerror=alert(1)>\" & </style></svg>"
MODULES = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
FURTHER = ("experts.gate_up", "experts.down", "experts.shared.gate", "gdn.conv", "gdn.decay", "norm", "router")
BASE = BaseIdentity(source="base", fingerprint="0" * 64)


def use(behavior: str, scale: float = 0.8) -> Use:
    return Use(behavior=behavior, number=1, vector="a" * 64, scale=scale)


def evaluation(results: Sequence[ProbeResult], personality: Personality) -> Evaluation:
    environment = {"torch": "2.13.0", "device": "cpu"}
    return Evaluation(
        id=Evaluation.key(personality.id, environment, "5" * 64, 7),
        version="",
        personality=personality.id,
        environment=environment,
        suite="5" * 64,
        seed=7,
        results=tuple(results),
        time="2026-01-01T00:00:00Z",
    )


def result(
    probe: str, outcomes: Sequence[bool], probabilities: Sequence[float] = (), margins: Sequence[float] = ()
) -> ProbeResult:
    return ProbeResult(
        probe=probe,
        passed=share(outcomes),
        probability=mean(probabilities) if probabilities else None,
        margin=mean(margins) if margins else None,
        outcomes=tuple(outcomes),
        probabilities=tuple(probabilities),
        margins=tuple(margins),
    )


def made_difference(*, layers: int = 4, modules: Sequence[str] = MODULES, measured: bool = True) -> Difference:
    """Two versions with everything that a page can show; a bigger model on demand."""
    old, new = Personality(base=BASE, uses=(use("calm"),)), Personality(base=BASE, uses=(use("calm", 0.3), use("warm")))
    first = Version.make(number=1, parents=(), personality=old, message="plain", time="2026-01-01T10:00:00Z")
    second = Version.make(number=2, parents=(first.id,), personality=new, message=NASTY, time="2026-01-02T10:00:00Z")
    return Difference(
        before=Side("v1", first),
        after=Side("v2", second),
        recipe=tuple(compare_recipes(old, new)),
        weights=_weights(layers, modules),
        steering=(SteeringDiff(3, "decision", "add", NASTY, 0.0, 2.5, 2.5, None),),
        doses=(
            ManifestCurve(
                label="warm@1",
                scales=(0.5, 1.0, 2.0),
                responses={
                    NASTY: (0.1, 0.6, 0.9),
                    "general.sums": (1.0, 0.9, 0.2),
                    "general.facts": (1.0, 1.0, 0.4),
                    "repetition": (0.0, 0.0, 0.4),
                },
                coherent_to=1.0,
                before=None,
                after=0.8,
            ),
        ),
        measured=_measured(old, new) if measured else None,
    )


def _weights(layers: int, modules: Sequence[str]) -> WeightDiff:
    def entry(layer: int | None, module: str, size: float) -> LayerDiff:
        return LayerDiff(layer, module, 100, 1.0, 1.5, size, 0.5, 0.25, 1.0, 0.75)

    parts = [
        entry(layer, module, 0.1 + (layer * 7 + index * 3) % 11 / 10)
        for layer in range(layers)
        for index, module in enumerate(modules)
    ]
    parts.append(entry(None, "embedding", 0.4))
    return WeightDiff(
        layers=(*(entry(layer, "", 2.0) for layer in range(layers)), entry(None, "", 0.4)),
        modules=tuple(parts),
        owners=(Owner("calm", -0.25, 0.5, True), Owner("warm", 1.25, 1.5, True)),
    )


def _measured(old: Personality, new: Personality) -> MeasuredChange:
    no, yes = [False] * 20, [True] * 20
    before = evaluation(
        [
            result("warm.warm", no, [0.1] * 20, [-0.2] * 20),
            result(f"warm.{NASTY}", yes),
            result("general.sums", yes, margins=[0.5] * 20),
        ],
        old,
    )
    after = evaluation(
        [
            result("warm.warm", [True] * 18 + [False] * 2, [0.9] * 20, [0.4] * 20),
            result(f"warm.{NASTY}", yes),
            result("general.sums", yes, margins=[0.5] * 20),
        ],
        new,
    )
    transcript = Transcript(
        probe=f"warm.{NASTY}",
        row=3,
        prompt=(Turn(role="system", content=NASTY), Turn(role="user", content=f"Say {NASTY}")),
        before=ScoredReply(f"Fine. {NASTY}", passed=False, probability=0.1, margin=-0.2),
        after=ScoredReply(f"Wonderful! {NASTY}", passed=True, probability=0.9, margin=0.4),
    )
    empty = Transcript(
        "warm.warm", 1, (Turn(role="user", content="x" * 300),), ScoredReply("", False), ScoredReply("y" * 300, True)
    )
    return MeasuredChange((before, after), tuple(compare_effects(before, after)), (transcript, empty))
