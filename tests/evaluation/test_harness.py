"""The lm-evaluation-harness: its documents by hand everywhere, and a task of its own where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from personality.evaluation.harness import evaluate_harness, harness_changes, harness_results
from personality.evaluation.suite import read_suite
from personality.evaluation.workbench import Workbench
from personality.manifests.errors import NotFoundError, PersonaError
from personality.manifests.evaluation import Evaluation
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.versions.changes import add
from personality.versions.history import History

INSTALLED = importlib.util.find_spec("lm_eval") is not None


def documents(*values: float, applied: str = "none", metric: str = "acc") -> list[dict[str, Any]]:
    return [
        {"doc_id": number, "filter": applied, "metrics": [metric, "odd"], metric: value, "odd": (1, 2)}
        for number, value in reversed(list(enumerate(values)))
    ]


def evaluation(*values: float) -> Evaluation:
    return Evaluation(
        id=Evaluation.key("p", {}, "s", 0),
        version="v",
        personality="p",
        environment={},
        suite="s",
        seed=0,
        results=(),
        time="now",
        harness=tuple(harness_results({"sums": documents(*values)})),
    )


def test_documents_become_figures_and_pairs() -> None:
    strict = documents(0.5, 0.25, applied="strict", metric="f1")
    found = {
        (item.task, item.metric): item for item in harness_results({"sums": documents(1.0, 0.0, 1.0), "f": strict})
    }
    assert set(found) == {("sums", "acc"), ("f", "f1, strict")}
    assert found["sums", "acc"].values == (1.0, 0.0, 1.0)
    assert found["sums", "acc"].figure.value == pytest.approx(2 / 3)
    assert found["f", "f1, strict"].figure.n == 2
    changes = harness_changes(evaluation(*[0.0] * 20), evaluation(*[1.0] * 20))
    assert changes["sums", "acc"].value == 1
    assert changes["sums", "acc"].low > 0.5
    assert harness_changes(evaluation(1.0), evaluation(1.0, 1.0)) == {}
    assert harness_changes(evaluation(0.25, 0.5), evaluation(0.5, 1.0))["sums", "acc"].value == pytest.approx(0.375)


@pytest.fixture
def bench(repository_copy: Path) -> Workbench:
    repository = Repository(repository_copy)
    return Workbench(repository, read_suite(repository, [], 1))


@pytest.mark.skipif(INSTALLED, reason="lm-evaluation-harness is installed")
def test_without_the_extra(bench: Workbench) -> None:
    head = History(bench.repository).head()
    with pytest.raises(PersonaError, match="is not installed") as caught:
        evaluate_harness(bench, head, ["arc_easy"])
    assert "personality[lm-eval]" in caught.value.hint
    with pytest.raises(NotFoundError, match="no task file"):
        evaluate_harness(bench, head, ["none.yaml"])


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs lm-evaluation-harness")
def test_a_task_of_its_own(bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sums = [5, 9, 12, 16]
    rows = [{"question": f"What is {a} plus {b}?", "right": sums.index(a + b)} for a in (2, 9) for b in (3, 7)]
    # The playground's template ends in a space before a reply, which the harness does not know.
    choices = json.dumps([f" That makes {value}." for value in sums])
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "little_sums.yaml"
    task.write_text(
        "task: little_sums\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'sums.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        f'doc_to_text: "{{{{question}}}}"\ndoc_to_choice: {choices}\n'
        "doc_to_target: right\nmetric_list:\n  - metric: acc\nmetadata:\n  version: 1\n"
    )
    base = History(bench.repository).head()
    torn = add(bench.repository, VectorLabel("listening"), 30.0).version
    found = evaluate_harness(bench, base, [str(task)])
    assert [(item.task, item.metric) for item in found.harness] == [("little_sums", "acc")]
    assert found.harness[0].values == (1.0,) * 4
    assert evaluate_harness(bench, base, [str(task)]) == found
    assert len(bench.repository.evaluations(base.id)) == 1
    assert evaluate_harness(bench, base, [str(task)], rows=2).harness[0].figure.n == 2
    broken = evaluate_harness(bench, torn, [str(task)])
    assert harness_changes(found, broken)["little_sums", "acc"].value < 0
    with pytest.raises(PersonaError, match="cannot run no_such_task"):
        evaluate_harness(bench, base, ["no_such_task"])
