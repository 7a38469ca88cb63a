"""What a run leaves in a vector's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from personality import processes
from personality.making.arm import Arm
from personality.making.health import Health
from personality.making.run_folder import RunFolder
from personality.making.training_data import TrainingData
from personality.making.training_job import TrainingJob
from personality.making.verdict import Judgment
from personality.manifests.evaluation import ProbeResult
from personality.manifests.manifest import DataUsed
from personality.manifests.training_record import TrainingRecord, UpdateMeter
from personality.preflight.findings import Preflight
from personality.vectors.training.examples import digest_examples, example_digest
from personality.vectors.training.run import TrainingReport


@dataclass(frozen=True)
class Measured:
    """What a model does, on the probes and on held-out general text."""

    probes: list[ProbeResult]
    health: Health | None


def data_used(job: TrainingJob, data: TrainingData, report: TrainingReport) -> tuple[DataUsed, ...]:
    """The files of a run: the behavior's, with the ledger of its examples, and the general one."""
    used = DataUsed(
        role="behavior",
        name=job.data.name,
        digest=digest_examples(data.behavior),
        examples=report.behavior_examples,
        sides=report.sides,
        ledger=tuple(sorted(example_digest(example) for example in data.behavior)),
    )
    if job.general is None:
        return (used,)
    general = DataUsed(
        role="general",
        name=job.general.name,
        digest=digest_examples([*data.general, *data.held_out]),
        examples=report.general_examples,
    )
    return (used, general)


def training_record(
    job: TrainingJob,
    folder: RunFolder,
    diagnosis: Preflight | None,
    before: Measured,
    arms: dict[str, Arm],
    after: dict[str, Measured],
    judgment: Judgment,
) -> TrainingRecord:
    """What the manifest keeps of a run.

    Args:
        job: what was asked for.
        folder: of the run.
        diagnosis: before training; None when it was left out.
        before: the base.
        arms: what was trained: `toward`, and `away` or `placebo`.
        after: what each arm does.
        judgment: on it.
    """
    report, survival = arms["toward"].report, arms["toward"].report.survival
    health = after["toward"].health
    stopped = {name: {"arm": name, **asdict(arm.report.sign)} for name, arm in arms.items() if arm.report.sign}
    arm_records = {
        name: {
            "data": arm.report.behavior_digest,
            "examples": arm.report.behavior_examples,
            "general examples": arm.report.general_examples,
            "sides": arm.report.sides,
            "settings": arm.report.settings.model_dump(mode="json"),
            "steps": arm.report.steps,
            "stopped": stopped.get(name),
            "loss": round(arm.report.losses[-1], 4),
        }
        for name, arm in arms.items()
        if job.contrastive
    }
    return TrainingRecord(
        run=folder.id,
        steps=report.steps,
        processes=processes.world(),
        preflight=diagnosis.as_json() if diagnosis is not None else {},
        forced=diagnosis is not None and diagnosis.verdict == "no-go",
        stopped=next((found for name, found in stopped.items() if name != "placebo"), None),
        guard=tuple({"arm": name, **entry} for name, arm in arms.items() for entry in arm.report.guard),
        updates=UpdateMeter(share_changed=survival.share_changed, cosine=survival.cosine) if survival else None,
        avoided=_avoided(job, before, arms, after),
        prevented=job.prevent.as_json() if job.prevent is not None else None,
        arms=arm_records,
        health=health.since(before.health) if health is not None else {},
        verdict=judgment.verdict,
        advice=judgment.advice,
    )


def _avoided(
    job: TrainingJob, before: Measured, arms: dict[str, Arm], after: dict[str, Measured]
) -> dict[str, Any] | None:
    if job.avoid is None:
        return None
    found: dict[str, Any] = job.avoid.as_json()
    for name, arm in arms.items():
        if arm.cosines is not None:
            found["tensors"] = len(arm.avoided)
            found[f"{name} cosines"] = {"in": round(arm.cosines[0], 6), "out": round(arm.cosines[1], 6)}
    if job.avoid.placebo and "placebo" not in arms:
        found["placebo diverged"] = True
    if "placebo" in after:
        found["placebo measures"] = measures_of(before.probes, after["placebo"].probes)
    return found


def measures_of(before: Sequence[ProbeResult], after: Sequence[ProbeResult]) -> dict[str, dict[str, float]]:
    """Per probe: share passed, opening's probability and margin, before and after, rounded for reading."""
    found: dict[str, dict[str, float]] = {}
    for old, new in zip(before, after, strict=True):
        figures: dict[str, Any] = {"passed before": old.passed.value, "passed after": new.passed.value}
        if old.probability and new.probability:
            figures |= {
                "probability before": old.probability.value,
                "probability after": new.probability.value,
            }
        if old.margin and new.margin:
            figures |= {"margin before": old.margin.value, "margin after": new.margin.value}
        found[old.probe] = {name: round(value, 4) for name, value in figures.items()}
    return found
