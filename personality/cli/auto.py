"""What `persona train --auto N` shows: its rounds as they end, a table of all, and which one to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from personality.cli.output import Output, percent

if TYPE_CHECKING:
    from personality.making.auto import AutoReport, Round
    from personality.making.training_job import TrainingJob
    from personality.manifests.repository import Repository


def train_rounds(
    out: Output, repository: Repository, job: TrainingJob, rounds: int, tensorboard: Path | None = None
) -> int:
    """Carry out `train --auto`.

    Args:
        out: of the verb.
        repository: where.
        job: of the first round.
        rounds: at most so many.
        tensorboard: folder for TensorBoard's event files, a folder in it for each round.

    Returns:
        The exit code: 3 when no round is right.
    """
    from personality.making.auto import auto_train

    with out.progress(f"train {job.behavior}") as advance:
        report = auto_train(
            repository,
            job,
            rounds,
            tensorboard=tensorboard,
            on_stage=lambda stage: advance(0, 1, stage),
            on_step=lambda step: advance(step.step, step.steps, f"step {step.step}/{step.steps}, loss {step.loss:.3f}"),
            on_round=lambda item: out.note(f"round {item.number}: {_name(item)}, {item.verdict}"),
        )
    out.result(_as_json(report), lambda: _show(out, job.behavior, report))
    best = report.best
    if best is not None and best.manifest is not None:
        out.note(f"next: persona add {best.manifest.label} --scale 0.8")
    return 0 if best is not None and best.verdict == "right" else 3


def _show(out: Output, behavior: str, report: AutoReport) -> None:
    probes = _own_probes(report, behavior)
    names = [f">{probe.removeprefix(behavior + '.')}" for probe in probes]
    out.table(
        ["round", "vector", ">examples", ">rate", ">general", *names, "verdict", "what was changed"],
        [
            (
                str(item.number),
                _name(item),
                str(item.examples),
                f"{item.rate:g}",
                percent(item.general_ratio),
                *(_figure(item, probe) for probe in probes),
                item.verdict,
                item.change,
            )
            for item in report.rounds
        ],
    )
    out.line(f"ended: {report.ended}")
    best = report.best
    if best is None:
        out.line("none of these is to be used", "bold")
    else:
        word = "use" if best.verdict == "right" else "the best of these, though too small, is"
        out.line(f"{word} {_name(best)} (round {best.number})", "bold")
    for sentence in (best or report.rounds[-1]).advice:
        out.line(f"  {sentence}")


def _name(item: Round) -> str:
    return item.manifest.label if item.manifest is not None else "nothing stored"


def _own_probes(report: AutoReport, behavior: str) -> list[str]:
    """Names of the behavior's own probes."""
    measured = [item.manifest.measures for item in report.rounds if item.manifest is not None]
    return sorted({probe for measures in measured for probe in measures if probe.startswith(f"{behavior}.")})


def _figure(item: Round, probe: str) -> str:
    """What a probe gave after the round: the wanted opening's probability, or the share of passing replies."""
    values = item.manifest.measures.get(probe) if item.manifest is not None else None
    if values is None:
        return ""
    return f"{values.get('probability after', values['passed after']):.0%}"


def _as_json(report: AutoReport) -> dict[str, Any]:
    def label(item: Round | None) -> str | None:
        return item.manifest.label if item is not None and item.manifest is not None else None

    return {
        "rounds": [
            {
                "number": item.number,
                "change": item.change,
                "examples": item.examples,
                "rate": item.rate,
                "general_ratio": item.general_ratio,
                "vector": item.manifest.as_json() if item.manifest is not None else None,
                "label": label(item),
                "verdict": item.verdict,
                "advice": list(item.advice),
            }
            for item in report.rounds
        ],
        "best": label(report.best),
        "ended": report.ended,
    }
