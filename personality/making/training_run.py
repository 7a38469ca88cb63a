"""`train`: a behavior's examples become a vector of this base, measured before and after."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from personality.composition.opening import composer_of
from personality.environment import tool_versions
from personality.evaluation.measure import measure
from personality.evaluation.suite import Probe, read_suite
from personality.making.vector_records import record_vector
from personality.manifests.atomic import TEMPORARY_PREFIX
from personality.manifests.errors import DataError, PersonaError
from personality.manifests.evaluation import ProbeResult
from personality.manifests.manifest import DataUsed, Making, Manifest
from personality.manifests.names import check_behavior_name
from personality.manifests.personality_record import Personality
from personality.manifests.repository import Repository
from personality.model import load_composed, load_tokenizer, threads_for
from personality.vectors.checkpoint import Checkpoint
from personality.vectors.difference import store_difference
from personality.vectors.training.examples import Example, digest_examples, read_examples
from personality.vectors.training.run import TrainingReport, fine_tune
from personality.vectors.training.settings import TrainSettings
from personality.vectors.training.trainer import StepReport


@dataclass(frozen=True)
class Trained:
    """A finished training run.

    Attributes:
        manifest: of the vector.
        new: False when the same vector was there already (the same data, settings and seed).
        report: of the run.
    """

    manifest: Manifest
    new: bool
    report: TrainingReport


def train_behavior(
    repository: Repository,
    behavior: str,
    data: Path,
    general: Path | None,
    settings: TrainSettings,
    *,
    examples: int | None = None,
    probe_rows: int | None = 40,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Trained:
    """Train a behavior on the repository's base and store the difference as a vector.

    The base is trained in float32, whatever its own dtype, so that small steps are not rounded away. The lock is held
    only while the result is stored; an interruption before that leaves the repository as it was.

    Args:
        repository: where.
        behavior: its name.
        data: JSONL of examples, with `rejected` replies for ORPO.
        general: JSONL of general examples; None only with `settings.general_ratio` 0.
        settings: hyper-parameters.
        examples: use only so many from the beginning of `data`.
        probe_rows: rows of each probe for the measures before and after; 0 for none.
        on_stage: told what is being done.
        on_step: told of each training step.

    Raises:
        DataError: for data that cannot be used, naming file and line.
        PersonaError: when the run diverges; nothing is stored.
    """
    check_behavior_name(behavior)
    told = on_stage or (lambda stage: None)
    wanted = read_examples(data, need_rejected=settings.method == "orpo")
    if examples is not None:
        if examples > len(wanted):
            raise DataError(f"{data} has {len(wanted)} examples, not {examples}", "ask for fewer, or write more")
        wanted = wanted[:examples]
    others = read_examples(general, need_rejected=False) if general else []
    probes = _probes(repository, behavior, probe_rows)
    told("loading the base")
    # By way of the composer, so that what is trained is what is composed, whatever else lies in the folder.
    composer = composer_of(repository, Personality(base=repository.config().base))
    base = composer.base
    model, tokenizer = load_composed(composer), load_tokenizer(base.folder)
    told("measuring the base")
    with threads_for(model):
        before = measure(model, tokenizer, probes)
    work = repository.local / "tmp" / f"{TEMPORARY_PREFIX}train-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    try:
        told("training")
        with threads_for(model):
            report = fine_tune(model, tokenizer, wanted, others, settings, work_dir=work, on_step=on_step)
            told("measuring the result")
            after = measure(model, tokenizer, probes)
        told("storing the vector")
        # save_pretrained turns the model's own layout (packed experts, say) back into the checkpoint's keys.
        _save(model, work / "tuned")
        del model
        with repository.writing():
            stored = store_difference(repository, base, Checkpoint(work / "tuned"), trained_here=True)
            making = _making(report, data, general, wanted, others)
            description = _description(repository, behavior)
            manifest, new = record_vector(
                repository,
                behavior,
                repository.config().base,
                stored,
                making,
                command=f"train {behavior} --data {data.name}",
                description=description,
                measures=_measures(before, after),
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Trained(manifest, new, report)


def _save(model: Any, folder: Path) -> None:
    """Write the trained weights.

    Raises:
        PersonaError: when the disk is full.
    """
    try:
        model.save_pretrained(str(folder))
    except (OSError, SafetensorError) as error:
        raise PersonaError(
            f"cannot write the trained weights to {folder}: {error}",
            "free some room (four bytes a parameter are needed for a moment), then train again",
        ) from error


def _probes(repository: Repository, behavior: str, rows: int | None) -> list[Probe]:
    """The behavior's own probes and the general suite, where there are any."""
    if rows == 0:
        return []
    known = [behavior] if behavior in repository.behaviors() else []
    return read_suite(repository, known, rows)


def _description(repository: Repository, behavior: str) -> str:
    file = repository.behaviors().get(behavior)
    return file.description if file else ""


def _making(
    report: TrainingReport,
    data: Path,
    general: Path | None,
    wanted: Sequence[Example],
    others: Sequence[Example],
) -> Making:
    used = [
        DataUsed(
            role="behavior",
            name=data.name,
            digest=digest_examples(wanted),
            examples=report.behavior_examples,
            sides=report.sides,
        )
    ]
    if general is not None:
        used.append(
            DataUsed(
                role="general",
                name=general.name,
                digest=digest_examples(others),
                examples=report.general_examples,
            )
        )
    return Making(
        how="train",
        settings=report.settings.model_dump(mode="json"),
        data=tuple(used),
        tools=tool_versions(),
        seconds=round(report.seconds, 3),
    )


def _measures(before: Sequence[ProbeResult], after: Sequence[ProbeResult]) -> dict[str, dict[str, float]]:
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
