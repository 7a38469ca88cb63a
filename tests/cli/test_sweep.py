"""`persona sweep` and `persona train --auto` as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Persona = Callable[..., tuple[int, str, str]]
DATA = ("--data", "data/listening.jsonl", "--general", "data/general.jsonl")


def test_table_json_and_plot(repository_copy: Path, persona: Persona) -> None:
    arguments = ("sweep", "listening", *DATA, "--counts", "10,60", "--rates", "0.002", "--probe-rows", "6")
    code, out, err = persona(*arguments, "--plot", "knee.svg", cwd=repository_copy)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "listening: probability of the wanted opening, by examples and learning rate"
    assert lines[1].split() == ["rate", "10", "60"]
    assert lines[2].split()[0] == "0.002"
    assert lines[2].endswith("✓]")
    assert "✓ right" in lines[3]
    assert "the knee: 60 examples at 0.002" in out
    assert "next: persona train listening --data data/listening.jsonl --general data/general.jsonl --examples 60" in err
    assert "the knee" in (repository_copy / "knee.svg").read_text()
    code, out, _ = persona(*arguments, "--json", cwd=repository_copy)
    data = json.loads(out)["data"]
    assert code == 0
    assert data["knee"] == {"examples": 60, "rate": 0.002}
    assert [cell["verdict"] for cell in data["cells"] if cell["examples"] == 10] == ["too small"]
    assert all(cell["wanted"]["low"] <= cell["wanted"]["value"] <= cell["wanted"]["high"] for cell in data["cells"])


def test_wrong_words(repository_copy: Path, persona: Persona) -> None:
    code, _, err = persona("sweep", "listening", *DATA, "--counts", "ten", cwd=repository_copy)
    assert code == 2
    assert "--counts takes whole numbers between commas, not 'ten'" in err
    code, _, err = persona("sweep", "listening", *DATA, "--plot", "knee.gif", cwd=repository_copy)
    assert code == 2
    code, _, err = persona("sweep", "listening", *DATA[:2], cwd=repository_copy)
    assert code == 2
    assert "--general-ratio 0" in err


def test_auto_prints_its_rounds_and_which_to_use(repository_copy: Path, persona: Persona) -> None:
    arguments = ("train", "listening", *DATA, "--auto", "1", "--no-preflight", "--probe-rows", "4")
    code, out, err = persona(*arguments, "--examples", "8", cwd=repository_copy)
    assert code == 3, err  # nothing is right yet
    assert "round 1: listening@2, too small" in err
    assert out.splitlines()[0].split()[:4] == ["round", "vector", "examples", "rate"]
    assert "ended: no further round was asked for" in out
    assert "the best of these, though too small, is listening@2 (round 1)" in out
    code, out, err = persona(*arguments, "--examples", "80", "--lr", "0.002", "--json", cwd=repository_copy)
    assert code == 0, err
    data = json.loads(out)["data"]
    assert data["best"] == "listening@3"
    assert [item["verdict"] for item in data["rounds"]] == ["right"]


def test_auto_does_not_resume(repository_copy: Path, persona: Persona) -> None:
    code, _, err = persona("train", "listening", "--resume", "--auto", "2", cwd=repository_copy)
    assert code == 2
    assert "--resume goes on with a run's own data" in err


def test_the_command_line_needs_no_matplotlib() -> None:
    program = "import sys, personality.cli.main; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
