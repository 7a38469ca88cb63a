"""`persona preflight` on a playground repository, which it never changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personality.playground.repository import GENERAL_EXAMPLES, make_playground

Persona = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playground repository without vectors: nothing is trained here."""
    root = tmp_path_factory.mktemp("preflight") / "play"
    make_playground(root, probe_rows=12)
    return root


DATA = ("--data", "data/listening.jsonl", "--general", "data/general.jsonl", "--examples", "40")


def files_of(root: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and ".persona" not in path.parts
    }


def test_go(persona: Persona, play: Path) -> None:
    before = files_of(play)
    code, out, err = persona("preflight", "listening", *DATA, cwd=play)
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["go", f"  40 examples (28 accept, 12 push_back), {GENERAL_EXAMPLES} general"]
    assert "base prefers rejected" in out and "where it pushes back" in out
    assert files_of(play) == before


def test_no_go_exits_with_3_and_says_what_mends_it(persona: Persona, play: Path) -> None:
    code, out, _ = persona("preflight", "listening", *DATA, "--lr", "0.5", cwd=play)
    assert code == 3
    assert out.startswith("no-go\n")
    assert "no-go: learning rate: 0.5 is 250 times above" in out
    assert "  → `--lr 0.002`" in out


def test_one_sided_data_in_json(persona: Persona, play: Path) -> None:
    arguments = (
        "--data",
        "data/listening-one-sided.jsonl",
        "--general",
        "data/general.jsonl",
        "--method",
        "dpo",
        "--json",
    )
    code, out, _ = persona("preflight", *arguments, "--method", "dpo", "--examples", "40", "--json", cwd=play)
    data: dict[str, Any] = json.loads(out)["data"]
    assert code == 0
    assert data["settings"]["method"] == "dpo"
    assert data["preflight"]["verdict"] == "go with changes"
    (change,) = [item for item in data["preflight"]["findings"] if item["level"] == "change"]
    assert change["name"] == "one-sided" and "sycophants" in change["text"]


def test_probes_of_the_repository_are_held_out(persona: Persona, play: Path, tmp_path: Path) -> None:
    rows = (play / "behaviors/listening.accept.jsonl").read_text().splitlines()[:3]
    leaked = tmp_path / "leaked.jsonl"
    leaked.write_text("".join(f"{row}\n" for row in rows))
    for behavior in ((), ("listening",)):
        _, out, _ = persona("preflight", *behavior, "--data", str(leaked), cwd=play)
        assert "leaked.jsonl:1 and row 1 of listening.accept" in out
    _, out, _ = persona("preflight", "candid", "--data", str(leaked), cwd=play)
    assert "probes not held out" not in out


def test_bad_input(persona: Persona, play: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    code, _, err = persona("preflight", "--data", str(empty), cwd=play)
    assert code == 1 and "holds no examples" in err
    code, _, err = persona("preflight", "--data", "data/general.jsonl", "--method", "dpo", cwd=play)
    assert code == 1 and "no field `rejected`" in err
    code, _, err = persona("preflight", *DATA[:4], "--examples", "500", cwd=play)
    assert code == 1 and "has 200 examples, not 500" in err
    code, _, err = persona("preflight", cwd=play)
    assert code == 2 and "--data" in err
