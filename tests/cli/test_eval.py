"""`persona eval`, gates, and the history by effect."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.cli.log import sparkline
from personality.evaluation.trends import Point
from personality.manifests.evaluation import Figure

Persona = Callable[..., tuple[int, str, str]]

GATE = """
[[require]]
goal = "general"
at_least = 0.5

[[require]]
goal = "listening"
by = "probability"
LIMIT
"""


@pytest.fixture
def root(repository_copy: Path, persona: Persona) -> Path:
    persona("add", "listening", "--scale", "1.5", cwd=repository_copy)
    return repository_copy


def gate(root: Path, limit: str) -> str:
    (root / "gate.toml").write_text(GATE.replace("LIMIT", limit))
    return "gate.toml"


def test_the_table_and_its_parent(root: Path, persona: Persona) -> None:
    code, out, _ = persona("eval", "--rows", "4", "--samples", "2", cwd=root)
    assert code == 0
    lines = {line.split("  ")[0].strip(): line for line in reversed(out.splitlines())}  # the first table's rows
    assert out.startswith("v2  listening@1 × 1.5  against v1\n")
    assert "+100.0 [" in lines["listening.accept"]
    assert "≈ +0.0 [" in lines["general.sums"]
    assert "listening  discrimination" in out
    assert "listening.accept  sampled (2 a row, temperature 1, seed 0)" in out
    assert "perplexity of general text" in out
    assert "≈ no difference shown" in out
    assert "a difference is shown in" in out
    code, out, _ = persona("eval", "v1", "--rows", "4", "--samples", "2", "--json", cwd=root)
    data = json.loads(out)["data"]
    assert data["against"] is None
    assert data["effects"] == []
    assert data["evaluation"]["health"]["kl"]["value"] == 0
    assert {figure["n"] for item in data["evaluation"]["results"] if (figure := item["sampled"])} == {4}
    code, out, _ = persona("eval", "v2", "--against", "v2", "--rows", "4", "--samples", "2", cwd=root)
    assert "\nno difference shown\n" in out
    code, out, _ = persona("eval", "v2", "--alone", "--no-health", "--suite", "general", "--rows", "2", cwd=root)
    assert "listening" not in out.partition("\n")[2]
    assert "against" not in out
    assert "health" not in out


def test_a_gate_that_holds_and_one_that_fails(root: Path, persona: Persona) -> None:
    common = ("eval", "--rows", "4", "--no-health", "--gate")
    code, out, _ = persona(*common, gate(root, "change_at_least = 0.3"), cwd=root)
    assert code == 0
    assert out.count("kept  ") == 2
    code, out, _ = persona(*common, gate(root, "at_most = 0.3"), cwd=root)
    assert code == 3
    assert "FAILED  listening (probability): at_most 0.3, measured " in out
    code, out, _ = persona(*common, "gate.toml", "--json", cwd=root)
    assert code == 3
    assert [item["kept"] for item in json.loads(out)["data"]["gate"]] == [True, False]
    code, _, err = persona(*common, "none.toml", cwd=root)
    assert (code, "cannot read the gate" in err) == (1, True)
    code, _, err = persona("eval", "--suite", "geneal", cwd=root)
    assert (code, "there are: general" in err) == (1, True)


def test_add_refuses_what_fails(root: Path, persona: Persona) -> None:
    code, out, _ = persona("add", "concise", "--gate", gate(root, "at_most = 0.3"), cwd=root)
    assert code == 3
    assert out.startswith("not recorded: concise@1 × 1 + listening@1 × 1.5 fails gate.toml\n")
    assert "FAILED  listening (probability)" in out
    assert "concise" not in persona("log", cwd=root)[1]
    assert "[use]" not in (root / "behaviors/concise.toml").read_text()
    code, out, _ = persona("add", "concise", "--gate", "gate.toml", "--json", cwd=root)
    assert (code, json.loads(out)["data"]["recorded"]) == (3, False)
    code, out, err = persona("add", "concise", "--gate", gate(root, "at_least = 0.3"), "--scale", "0.5", cwd=root)
    assert code == 0
    assert out.startswith("v3  add concise@1 × 0.5")
    assert "2 bounds of gate.toml are kept" in err


def test_a_dead_judge_and_a_wrong_row(root: Path, persona: Persona) -> None:
    with (root / "persona.toml").open("a") as file:
        file.write('\n[judge]\nurl = "http://127.0.0.1:9/v1"\nmodel = "m"\nattempts = 1\n')
    with (root / "behaviors/warm.toml").open("a") as file:
        file.write('\n[[probes]]\nname = "judged"\nfile = "warm.judged.jsonl"\n')
        file.write('scorer = {kind = "judge", rubric = "Is it warm?"}\n')
    rows = root / "behaviors/warm.judged.jsonl"
    rows.write_text('{"prompt": [{"role": "user", "content": "Hello."}]}\n')
    command = ("eval", "--behavior", "warm", "--rows", "1", "--json")
    code, out, _ = persona(*command, cwd=root)
    error = json.loads(out)["error"]
    assert (code, error["kind"]) == (1, "judge")
    assert "http://127.0.0.1:9/v1 gave no verdict" in error["message"]
    assert "0 of 1 verdicts of this probe are kept" in error["message"]
    assert "run the same command again" in error["hint"]
    rows.write_text(rows.read_text() + '{"promt": []}\n')
    code, out, _ = persona(*command, cwd=root)
    error = json.loads(out)["error"]
    assert (code, error["kind"]) == (1, "data")
    assert error["message"].startswith("behaviors/warm.judged.jsonl:2: prompt: Field required")


def test_the_history_by_effect(root: Path, persona: Persona, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, err = persona("log", "--effect", "--rows", "2", cwd=root)
    assert code == 0
    assert "not measured" in out
    assert "--measure" in err
    code, out, _ = persona("log", "--effect", "--rows", "2", "--measure", cwd=root)
    listening = next(line for line in out.splitlines() if line.startswith("listening"))
    marks = listening.split()[1]
    assert int(marks[1]) > int(marks[0])
    assert "0 below 10% to 9 from 90%" in out
    code, out, _ = persona("log", "--effect", "--rows", "2", "--json", cwd=root)
    points = json.loads(out)["data"]["effects"]["general"]
    assert [bool(point["value"]) for point in points] == [True, True]
    code, _, err = persona("log", "--measure", cwd=root)
    assert (code, "belong to --effect" in err) == (2, True)


def test_sparklines(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.0, 0.124, 0.5, None, 0.99, 1.0]
    points = [
        Point("v", None if value is None else Figure(value=value, low=value, high=value, n=1), None) for value in values
    ]
    monkeypatch.delenv("NO_COLOR", raising=False)
    for encoding, shown in (("utf-8", "▁▁▅ ██"), ("ascii", "015.99")):
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert sparkline(points) == shown
