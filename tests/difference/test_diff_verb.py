from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Persona = Callable[..., tuple[int, str, str]]


@pytest.fixture
def versions(repository_copy: Path, persona: Persona) -> Path:
    for arguments in (("listening", "--scale", "0.8"), ("concise", "--scale", "0.8", "-m", "<b>short</b> answers")):
        assert persona("add", *arguments, cwd=repository_copy)[0] == 0
    return repository_copy


def test_weights_by_module_and_their_owners(versions: Path, persona: Persona) -> None:
    code, out, _ = persona("diff", "v1", "v3", "--modules", cwd=versions)
    assert code == 0
    assert "attention.q" in out
    assert "of ‖change‖² is owned by  + listening@1 × 0.8" in out
    code, out, _ = persona("diff", "v1", "v3", "--json", cwd=versions)
    data = json.loads(out)["data"]
    assert data["labels"] == ["v1", "v3"]
    assert len(data["modules"]) == 7 * len(data["layers"])
    assert sum(owner["share"] for owner in data["owners"]) == pytest.approx(1, abs=1e-6)
    assert {owner["what"] for owner in data["owners"]} == {"concise", "listening"}
    assert "effects" not in data
    assert "owned by" not in persona("diff", "v3", "v3", cwd=versions)[1]


def test_effects_replies_and_the_page(versions: Path, persona: Persona, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    arguments = ("diff", "v1", "v3", "--effect", "--rows", "4", "--replies", "3", "--html", str(file))
    code, out, err = persona(*arguments, cwd=versions)
    assert code == 0, err
    assert "no difference shown" in out
    assert "\nreply " in out
    code, out, _ = persona(*arguments, "--json", cwd=versions)
    data = json.loads(out)["data"]
    assert 1 <= len(data["replies"]) <= 3
    for reply in data["replies"]:
        assert reply["before"]["text"] != reply["after"]["text"]
        assert reply["prompt"][0]["role"] == "user"
    assert data["measured"]["seed"] == 0
    probes = {effect["probe"]: effect for effect in data["effects"]}
    assert probes["listening.accept"]["change"]["n"] == 4
    page = file.read_text(encoding="utf-8")
    assert "&lt;b&gt;short&lt;/b&gt; answers" in page
    assert "<b>short" not in page
    for reply in data["replies"]:
        assert reply["probe"] in page
