"""`persona gradients` as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Persona = Callable[..., tuple[int, str, str]]


def test_table_and_json(repository_copy: Path, persona: Persona) -> None:
    arguments = ("gradients", "--data", "data/concise.jsonl", "--examples", "10", "--only", "attention")
    code, out, err = persona(*arguments, cwd=repository_copy)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["group", "parameters", "cosine", "norm", "ratio"]
    assert [line.split()[0] for line in lines[1:6]] == [*(f"attention.{part}" for part in "koqv"), "all"]
    assert lines[6].startswith("memory ")
    assert "tokens of context without gradient" in err
    code, out, _ = persona(*arguments, "--json", cwd=repository_copy)
    data = json.loads(out)["data"]
    assert code == 0
    assert [group["group"] for group in data["groups"]][-1] == "all"
    assert f"{data['groups'][2]['cosine']:.3f}" == lines[3].split()[2]
    assert data["full"]["memory_bytes"] > data["frozen"]["memory_bytes"] > 0


def test_wrong_words(repository_copy: Path, persona: Persona) -> None:
    code, _, err = persona("gradients", "--data", "data/concise.jsonl", "--only", "atention", cwd=repository_copy)
    assert code == 2
    assert "did you mean `attention`?" in err
    code, _, err = persona("gradients", "--data", "nowhere.jsonl", cwd=repository_copy)
    assert code == 1
    assert "no data file at nowhere.jsonl" in err
