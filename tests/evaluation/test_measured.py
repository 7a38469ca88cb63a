"""What is measured once is kept probe by probe: through added probes, interruptions, dead judges and other suites."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from personality.evaluation.evaluate import compare_effects, evaluate, suite_changes
from personality.evaluation.judge import JudgeError
from personality.evaluation.measured import Measured
from personality.evaluation.suite import read_suite
from personality.evaluation.trends import trends
from personality.evaluation.workbench import Workbench
from personality.manifests.errors import DataError
from personality.manifests.evaluation import Evaluation
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.playground.judge import MODEL, server
from personality.versions.changes import add, remove
from personality.versions.history import History

ROWS = 3


@pytest.fixture
def repository(repository_copy: Path) -> Repository:
    return Repository(repository_copy)


def declare(repository: Repository, entry: str, file: str = "listening.accept.jsonl") -> None:
    path = repository.root / "behaviors/listening.toml"
    path.write_text(f'{path.read_text()}\n[[probes]]\nfile = "{file}"\n{entry}\n')


class Steps:
    """Which probes were measured."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, index: int, count: int, name: str) -> None:
        self.names.append(name)


def test_an_added_probe_alone_is_measured(repository: Repository) -> None:
    version = History(repository).head()
    first = evaluate(repository, version, rows=ROWS)
    declare(repository, 'name = "short"\nscorer = {kind = "length", unit = "sentences", max = 1}')
    steps = Steps()
    second = evaluate(repository, version, rows=ROWS, on_probe=steps)
    assert steps.names == ["3 replies", "listening.short"]
    assert [item for item in second.results if item.probe != "listening.short"] == list(first.results)
    assert len(repository.evaluations(version.id)) == 2
    assert suite_changes(first, second) == ["`listening.short` is new"]
    with pytest.raises(DataError, match=r"different probes: `listening\.short` is gone"):
        compare_effects(second, first)
    rows = repository.root / "behaviors/warm.warm.jsonl"
    changed = [json.loads(line) | {"pass": "^never$"} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    steps = Steps()
    third = evaluate(repository, version, rows=ROWS, on_probe=steps)
    assert steps.names[1:] == ["warm.warm"]
    assert suite_changes(second, third) == ["`warm.warm` was changed"]


def test_evaluations_of_git_are_known_where_the_cache_is_not(repository: Repository) -> None:
    import shutil

    version = History(repository).head()
    first = evaluate(repository, version, rows=ROWS)
    shutil.rmtree(repository.local / "measured")
    bench = Workbench(repository, read_suite(repository, ["warm"], ROWS))
    assert bench.measure(version.personality)[0].probe == "warm.warm"
    assert bench.measured == 0
    other = add(repository, VectorLabel("concise"), 0.5).version
    bench.measure(other.personality)
    assert bench.measured == 1
    # The other way round: what a search has measured, an evaluation does not measure again.
    steps = Steps()
    evaluation = evaluate(repository, other, behaviors=["warm", "concise"], rows=ROWS, on_probe=steps)
    assert steps.names[1:] == ["concise.concise"]
    assert evaluation.results[0].probe == "warm.warm"
    # A version that says the same again needs nothing.
    again = remove(repository, "concise").version
    assert evaluate(repository, again, rows=ROWS) == first


def test_an_interruption_costs_the_probe_it_hit(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personality.evaluation.measure._GROUP_ROWS", 2 * ROWS)
    version = History(repository).head()

    def stop(index: int, count: int, name: str) -> None:
        if name == "listening.accept":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(repository, version, rows=ROWS, on_probe=stop)
    assert repository.evaluations(version.id) == []
    steps = Steps()
    whole = evaluate(repository, version, rows=ROWS, on_probe=steps)
    done = {"candid.unknown", "candid.known", "concise.concise"}
    assert {name for name in steps.names if "." in name} == {item.probe for item in whole.results} - done


def test_damaged_and_older_records(repository: Repository) -> None:
    version = History(repository).head()
    first = evaluate(repository, version, behaviors=["warm"], rows=ROWS)
    store = Measured(repository)
    (probe,) = read_suite(repository, ["warm"], ROWS)[:1]
    for path in (repository.local / "measured").rglob("*.json"):
        path.write_text("{")
    assert store.recall(version.personality.id, [probe]) == {"warm.warm": first.results[0]}
    # An evaluation from before probes had digests: its id holds, and an equal run is answered by it.
    (path,) = (repository.root / "evals").rglob("*.json")
    data = json.loads(path.read_text())
    del data["health"]
    kept = {"probe", "passed", "probability", "margin", "outcomes", "probabilities"}
    data["results"] = [{key: value for key, value in item.items() if key in kept} for item in data["results"]]
    path.write_text(json.dumps(data))
    old = Evaluation.read(path)
    assert old.id == first.id
    steps = Steps()
    assert evaluate(repository, version, behaviors=["warm"], rows=ROWS, on_probe=steps) == old
    assert steps.names == []
    declare(repository, 'name = "more"')
    assert suite_changes(old, evaluate(repository, version, rows=ROWS))[0].endswith("is new")
    assert "is not known" in suite_changes(old, first.model_copy(update={"suite": "other"}))[0]


def test_a_judge_that_dies_and_comes_back(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personality.evaluation.judge._FIRST_WAIT", 0.001)
    config = repository.root / "persona.toml"
    config.write_text(f'{config.read_text()}\n[judge]\nurl = "http://127.0.0.1:9/v1"\nmodel = "{MODEL}"\n')
    rubric = '{kind = "judge", rubric = "Does the reply follow the direction?", verdict = "VERDICT"}'
    declare(repository, f'name = "judged"\nscorer = {rubric.replace("VERDICT", "yes-no")}')
    declare(repository, f'name = "graded"\nscorer = {rubric.replace("VERDICT", "0-10")}\nsamples = 2')
    version = add(repository, VectorLabel("listening"), 1.0).version
    with pytest.raises(JudgeError, match=r"127\.0\.0\.1:9/v1 gave no verdict in 4 attempts: .*refused") as caught:
        evaluate(repository, version, rows=ROWS)
    assert "what was measured and judged is not done again" in caught.value.hint
    with server() as found:
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("PERSONA_JUDGE_URL", f"http://127.0.0.1:{found.server_port}/v1")
        steps = Steps()
        evaluation = evaluate(repository, version, rows=ROWS, on_probe=steps)
        found.shutdown()
    assert "candid.unknown" not in steps.names  # finished before the judge was needed
    by_pattern, judged, graded = (evaluation.result(f"listening.{name}") for name in ("accept", "judged", "graded"))
    assert by_pattern is not None and judged is not None and graded is not None
    assert judged.outcomes == by_pattern.outcomes
    assert graded.grade is not None
    assert graded.grades == tuple(float(item) for item in by_pattern.outcomes)
    assert graded.sampled is not None
    # With every verdict kept, nobody is asked: the judge is gone again.
    monkeypatch.setenv("PERSONA_JUDGE_URL", "http://127.0.0.1:9/v1")
    assert evaluate(repository, version, rows=ROWS, again=True).results == evaluation.results


def test_trends_take_what_there_is(repository: Repository) -> None:
    base = History(repository).head()
    strong = add(repository, VectorLabel("listening"), 1.0).version
    weak = add(repository, VectorLabel("listening"), 0.1).version
    versions = [base, strong, weak]
    for version in (base, weak):
        evaluate(repository, version, rows=ROWS)
    probes = read_suite(repository, rows=ROWS)
    points = trends(repository, versions, probes)
    assert {"listening", "push_back", "general", "warm"} <= set(points)
    assert "listening.accept" not in points
    assert [point.value is not None for point in points["listening"]] == [True, False, True]
    assert points["listening"][0].change is None
    evaluate(repository, strong, rows=ROWS)
    first, second, third = trends(repository, versions, probes)["listening"]
    values: list[Any] = [first.value, second.value, third.value]
    assert values[1].value > max(values[0].value, values[2].value)
    assert second.change is not None
    assert second.change.value == pytest.approx(values[1].value - values[0].value)
    assert all(
        point.value is None
        for points in trends(repository, versions, read_suite(repository)).values()
        for point in points
    )
