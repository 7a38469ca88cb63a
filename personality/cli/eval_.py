"""`persona eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality.cli.evaluation_lines import (
    COLUMNS,
    FAILED,
    effects_json,
    harness_rows,
    health_rows,
    judgment_rows,
    other_rows,
    probe_rows,
    show_gate,
)
from personality.cli.options import DirectoryOption, JsonOption, examples, find_version, open_repository
from personality.cli.output import Output
from personality.cli.tables import LEGEND

if TYPE_CHECKING:
    from personality.manifests.version import Version
    from personality.versions.history import History


@examples(
    "persona eval v4",
    "persona eval head --behavior listening --rows 30 --samples 8",
    "persona eval v4 --suite general --suite more/tact.toml",
    "persona eval v4 --gate gate.toml --json",
    "persona eval v4 --lm-eval arc_easy,hellaswag --rows 200",
)
def eval_(
    version: Annotated[str, typer.Argument(help="v4, a tag, or the beginning of an id.")] = "head",
    behavior: Annotated[
        list[str] | None, typer.Option(help="Whose probes; general ability always.", show_default="all")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Only the probes of suites/NAME.toml, or of such a file.",
            show_default="behaviors and general",
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of each probe.", show_default="all")] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=0, help="Replies to sample for each row, beside the greedy one.", show_default="the probe's"),
    ] = None,
    gate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Exit with 3 when one of its bounds fails.", show_default=False)
    ] = None,
    against: Annotated[
        str, typer.Option(metavar="VERSION", help="Show the change from it.", show_default="the parent")
    ] = "",
    alone: Annotated[bool, typer.Option("--alone", help="Measure this version only, and show no change.")] = False,
    health: Annotated[
        bool, typer.Option(help="Also measure general text, coherence and the distance from the base.")
    ] = True,
    lm_eval: Annotated[
        str,
        typer.Option(
            "--lm-eval",
            metavar="TASKS",
            help="Also run these tasks of the lm-evaluation-harness: names or .yaml files, by commas.",
            show_default=False,
        ),
    ] = "",
    again: Annotated[bool, typer.Option("--again", help="Measure even what was measured before.")] = False,
    as_json: JsonOption = False,
    directory: DirectoryOption = None,
) -> None:
    """Measure a version with the repository's probes, and show the change from its parent; the result is kept."""
    from personality.evaluation.evaluate import compare_effects, evaluate
    from personality.evaluation.gate import Measures, check_gate, needed_probes, read_gate
    from personality.evaluation.harness import evaluate_harness, harness_changes
    from personality.evaluation.health import health_changes
    from personality.evaluation.judgment import as_json as judgment_json
    from personality.evaluation.judgment import judgment_changes, judgments
    from personality.evaluation.suite import read_suite
    from personality.evaluation.workbench import Workbench

    out = Output("eval", as_json=as_json)
    repository = open_repository(directory)
    wanted = read_gate(gate) if gate else None
    history, found = find_version(out, repository, version)
    other = _other(history, found, against, alone=alone)
    probes = read_suite(repository, behavior, rows, suite or (), samples)
    if wanted:
        needed_probes(wanted, probes)  # a gate that asks for what is not there is refused before hours of measuring
    evaluations = []
    with out.progress("measure") as advance:
        bench = Workbench(repository, probes, on_probe=advance)
        for item in [found, *([other] if other else [])]:
            evaluations.append(
                evaluate(repository, item, again=again, on_probe=advance, probes=probes, health=health, bench=bench)
            )
        tasks = [task.strip() for task in lm_eval.split(",") if task.strip()]
        compared = [found, *([other] if other else [])] if tasks else []
        runs = [evaluate_harness(bench, item, tasks, rows=rows, again=again) for item in compared]
    evaluation, before = evaluations[0], evaluations[-1]
    run_changes = harness_changes(runs[-1], runs[0]) if len(runs) > 1 else {}
    effects = compare_effects(before, evaluation) if other else []
    judged = judgments(probes, evaluation.results)
    judged_changes = judgment_changes(probes, before.results, evaluation.results) if other else {}
    well, well_before = evaluation.health, before.health
    well_changes = health_changes(well_before, well) if other and well and well_before else {}
    checks = []
    if wanted:
        measures = [Measures(item.results, item.health) for item in (before, evaluation)]
        checks = check_gate(wanted, probes, *measures)

    def human() -> None:
        words = f"  against {history.label(other)}" if other else ""
        out.line(f"{history.label(found)}  {found.personality}{words}", "bold")
        columns = [">passed", ">95% interval", ">change (95% interval)", ">P(opening)", ">95% interval", ">change of P"]
        out.table(["probe", *columns], probe_rows(evaluation, effects))
        further = {
            "more": other_rows(evaluation, effects),
            "judgment": judgment_rows(judged, judged_changes),
            "health": health_rows(well, well_changes) if well else [],
            "lm-eval": harness_rows(runs[0] if runs else None, run_changes),
        }
        for title, lines in further.items():
            if lines:
                out.line()
                out.table([title, *COLUMNS], lines)
        out.line()
        if effects:
            out.line(LEGEND)
            shown = sum(effect.shown for effect in effects)
            out.line(f"a difference is shown in {shown} of {len(effects)} probes" if shown else "no difference shown")
        if checks:
            out.line()
            show_gate(out, checks)

    data: dict[str, Any] = {
        "label": history.label(found),
        "evaluation": evaluation.as_json(),
        "against": history.label(other) if other else None,
        "effects": effects_json(effects),
        "judgment": [judgment_json(item) for item in judged],
        "judgment_changes": {
            name: {key: figure.as_json() for key, figure in figures.items()} for name, figures in judged_changes.items()
        },
        "health_changes": {name: figure.as_json() for name, figure in well_changes.items()},
        "lm_eval": [item.as_json() for item in runs[0].harness] if runs else [],
        "lm_eval_changes": [
            {"task": task, "metric": metric, "change": figure.as_json()}
            for (task, metric), figure in run_changes.items()
        ],
        "gate": [check.as_json() for check in checks],
    }
    out.result(data, human)
    if not all(check.kept for check in checks):
        raise typer.Exit(FAILED)


def _other(history: History, version: Version, against: str, *, alone: bool) -> Version | None:
    """What a version is compared with: what was asked for, else its first parent."""
    if alone:
        return None
    if against:
        return history.find(against)
    return history.versions[version.parents[0]] if version.parents else None
