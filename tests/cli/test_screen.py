"""`persona screen`: the worst rows first, and a gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.manifests.repository import Repository
from personality.playground.behaviors import examples
from personality.playground.repository import make_playground
from tests.steering_fixtures import decision_direction, steer

Persona = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("screen") / "play"
    make_playground(root, probe_rows=2)
    steer(Repository(root), "warm", 3, decision_direction("warm", 3))
    rows = examples("warm", 12, 9)
    lines = [
        {"prompt": row["prompt"], "completion": row["chosen" if n < 4 else "rejected"]} for n, row in enumerate(rows)
    ]
    (root / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


COMMAND = ("screen", "listening", "--data", "mixed.jsonl", "--vector", "warm")


def test_the_worst_rows_come_first(play: Path, persona: Persona) -> None:
    code, out, err = persona(*COMMAND, "--rows", "4", "--threshold", "0.1", cwd=play)
    assert code == 0, err
    rows = out.splitlines()
    assert rows[0].split()[:4] == ["shift", "answer", "base", "example"]
    assert {row.split()[3] for row in rows[1:5]} == {f"mixed.jsonl:{n}" for n in range(1, 5)}
    assert rows[5] == "… and 8 more" and rows[6].startswith("mean shift +") and "toward warm@1" in rows[6]
    assert "examples have a shift above 0.1" in rows[7] and "nats per token" in err


def test_the_gate(play: Path, persona: Persona) -> None:
    code, out, err = persona(*COMMAND, "--fail-above", "0.02", "--json", cwd=play)
    data = json.loads(out)["data"]
    assert code == 3 and data["failed"] and data["mean"]["value"] > 0.02
    assert len(data["examples"]) == 12 and data["examples"][0]["shift"] >= data["examples"][-1]["shift"]
    assert "--prevent warm@1" in err
    code, out, err = persona(*COMMAND, "--approximate", "--fail-above", "5", cwd=play)
    assert code == 0 and "base: not asked" in err


def test_what_is_asked_wrongly(play: Path, persona: Persona) -> None:
    code, _, err = persona(*COMMAND, "--threshold", "nan", cwd=play)
    assert code == 2 and "--threshold nan" in err
    code, _, err = persona("screen", "listening", "--data", "none.jsonl", "--vector", "warm", cwd=play)
    assert code == 1 and "none.jsonl" in err
    code, _, err = persona("screen", "listening", "--data", "mixed.jsonl", "--vector", "obey", cwd=play)
    assert code == 1 and "obey" in err
