"""`persona chat` as a user types, one line after the other."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.versions.changes import add

Persona = Callable[..., tuple[int, str, str]]
ASKED = "Please paint the ladder red."


@pytest.fixture
def root(repository_copy: Path) -> Path:
    add(Repository(repository_copy), VectorLabel.parse("concise"), scale=1.0)
    return repository_copy


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_versions_change_inside_a_chat(root: Path, persona: Persona, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, ASKED, "/undo", "/version v1", ASKED, "/reset", "/version v1 v2", ASKED, "/quit", "never said")
    code, out, err = persona("chat", "v2", cwd=root)
    assert code == 0, err
    short, long, *both = out.splitlines()
    assert [line.split("  ", 1) for line in both] == [["v1", long], ["v2", short]]
    assert short != long and f"taken back: {ASKED}" in err
    assert "v2; /help" in err
    typed(monkeypatch, ASKED)
    code, told, _ = persona("chat", "v1", "v2", "--json", cwd=root)
    answers = json.loads(told)["data"]["answers"]
    assert code == 0 and [(answer["label"], answer["text"]) for answer in answers] == [("v1", long), ("v2", short)]


def test_mistakes_do_not_end_it(root: Path, persona: Persona, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("/nosuch", "/version v77", "/version", "/undo", "/save", '/example "open', "/prefer x.jsonl 3", "/probe a")
    typed(monkeypatch, *wrong, "/help", "", ASKED)
    code, out, err = persona("chat", cwd=root)
    assert code == 0
    assert err.count("Error:") == len(wrong)
    assert "there is no `/nosuch`" in err and "/version v3 [v4 …]" in err
    assert len(out.splitlines()) == 1


def test_what_was_said_is_kept(root: Path, persona: Persona, monkeypatch: pytest.MonkeyPatch) -> None:
    better = "Okay, I painted the ladder red."
    typed(
        monkeypatch,
        ASKED,
        f"/probe listening.accept ^Okay '{better}'",
        f"/example more.jsonl '{better}' accept",
        "/prefer more.jsonl 2",
        "/save said.jsonl",
    )
    monkeypatch.chdir(root)
    code, _, err = persona("chat", "v1", "v2", cwd=root)
    assert code == 0 and "Error" not in err, err
    assert len((root / "more.jsonl").read_text().splitlines()) == 2
    assert "2 messages → said.jsonl" in err
    assert better in (root / "behaviors/listening.accept.jsonl").read_text().splitlines()[-1]
