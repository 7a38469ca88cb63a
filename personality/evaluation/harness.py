"""EleutherAI's lm-evaluation-harness on a version in memory; an optional extra."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from personality.evaluation.evaluate import SEED
from personality.evaluation.intervals import mean, paired_difference, paired_share_difference, share
from personality.evaluation.workbench import Workbench
from personality.manifests.atomic import write_bytes
from personality.manifests.canonical import digest, digest_bytes
from personality.manifests.errors import NotFoundError, PersonaError
from personality.manifests.evaluation import Evaluation, Figure, HarnessResult
from personality.manifests.transaction import now
from personality.manifests.version import Version
from personality.model import threads_for


def evaluate_harness(
    bench: Workbench, version: Version, tasks: Sequence[str], *, rows: int | None = None, again: bool = False
) -> Evaluation:
    """Run tasks of the harness on a version, or return what an equal run gave before.

    Prompts go through the model's chat template where it has one. The result is an evaluation of its own, whose suite
    is these tasks and this harness.

    Args:
        bench: whose model takes on the version.
        version: what to measure.
        tasks: names that the harness knows, or paths of task files (`.yaml`).
        rows: at most so many documents of each task.
        again: run even when the same was run before.

    Raises:
        NotFoundError: when there is no such task file.
        PersonaError: when the harness is not installed, or refuses a task.
    """
    files = {task: Path(task) for task in tasks if task.endswith((".yaml", ".yml"))}
    for path in files.values():
        if not path.is_file():
            raise NotFoundError(f"there is no task file at {path}", "give its path, or the name of a task")
    try:
        harness = package_version("lm_eval")
    except PackageNotFoundError:
        raise PersonaError(
            "lm-evaluation-harness is not installed", "install it: `pip install 'personality[lm-eval]'`"
        ) from None
    asked = [digest_bytes(files[task].read_bytes()) if task in files else task for task in tasks]
    suite = digest({"lm-eval": harness, "tasks": asked, "rows": rows})
    key = Evaluation.key(version.personality.id, bench.store.environment, suite, SEED)
    if not again and (known := bench.repository.evaluations_of_run(key)):
        return known[-1]
    with bench.taking(version.personality) as (model, tokenizer), threads_for(model):
        samples = _run(model, tokenizer, [files[task].stem if task in files else task for task in tasks], files, rows)
    evaluation = Evaluation(
        id=key,
        version=version.id,
        personality=version.personality.id,
        environment=bench.store.environment,
        suite=suite,
        seed=SEED,
        results=(),
        time=now(),
        harness=tuple(harness_results(samples)),
    )
    write_bytes(bench.repository.new_evaluation_path(version.id, key), evaluation.to_bytes())
    return evaluation


def _run(
    model: Any, tokenizer: Any, names: list[str], files: dict[str, Path], rows: int | None
) -> dict[str, list[dict[str, Any]]]:
    """What the harness found for each document, by task; what it prints is not passed on."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folders = sorted({str(path.resolve().parent) for path in files.values()})
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            found = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
                tasks=names,
                task_manager=TaskManager(include_path=folders or None),
                limit=rows,
                apply_chat_template=bool(tokenizer.chat_template),
                log_samples=True,
                bootstrap_iters=0,  # the intervals are ours, from the values of the documents
                random_seed=SEED,
                numpy_random_seed=SEED,
                torch_random_seed=SEED,
                fewshot_random_seed=SEED,
            )
    except (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise PersonaError(
            f"lm-evaluation-harness cannot run {', '.join(names)}: {type(error).__name__}: {error}",
            "see its task's documentation; `lm_eval ls tasks` lists those it knows",
        ) from error
    return {task: list(rows) for task, rows in found["samples"].items()}


def harness_results(samples: dict[str, list[dict[str, Any]]]) -> Iterable[HarnessResult]:
    """Each metric that has one number a document, by task, metric and filter.

    Args:
        samples: what the harness logs of each document, by task.
    """
    for task, documents in sorted(samples.items()):
        values: dict[str, list[float]] = {}
        for document in sorted(documents, key=lambda item: int(item["doc_id"])):
            applied = document.get("filter", "none")
            for metric in document["metrics"]:
                if isinstance(value := document.get(metric), int | float):
                    name = metric if applied == "none" else f"{metric}, {applied}"
                    values.setdefault(name, []).append(float(value))
        for metric, found in values.items():
            figure = share([value == 1 for value in found]) if _is_share(found) else mean(found)
            yield HarnessResult(task=task, metric=metric, figure=figure, values=tuple(found))


def harness_changes(before: Evaluation, after: Evaluation) -> dict[tuple[str, str], Figure]:
    """Paired differences, after − before, by task and metric; of the same documents only."""
    old = {(item.task, item.metric): item.values for item in before.harness}
    found = {}
    for item in after.harness:
        values = old.get((item.task, item.metric), ())
        if before.suite == after.suite and len(values) == len(item.values):
            if _is_share((*values, *item.values)):
                change = paired_share_difference([v == 1 for v in values], [v == 1 for v in item.values])
            else:
                change = paired_difference(values, item.values)
            found[item.task, item.metric] = change
    return found


def _is_share(values: Sequence[float]) -> bool:
    return set(values) <= {0.0, 1.0}
