"""`persona inside` on the playground."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.versions.changes import add

Persona = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(repository_copy: Path) -> Path:
    for name in ("listening", "concise"):
        add(Repository(repository_copy), VectorLabel.parse(name), scale=1.0)
    return repository_copy


def test_attention_with_a_control(root: Path, persona: Persona) -> None:
    asked = ("inside", "head", "--probe", "listening.accept", "--rows", "5")
    code, out, err = persona(*asked, "--json", cwd=root)
    assert code == 0, err
    data = json.loads(out)["data"]
    assert data["control"] == "concise@1 × 1" and data["rows"] == 5 and data["states"] == []
    forced, own = data["attention"]["forced"], data["attention"]["own"]
    assert [item["layer"] for item in forced] == [0, 1, 2, 3]
    assert own[1]["change"]["n"] == 5
    # Its own replies are of another content: that moves attention more than the change of the weights does.
    assert sum(item["change"]["value"] for item in own) > sum(item["change"]["value"] for item in forced)
    code, out, err = persona(*asked, cwd=root)
    assert code == 0 and "the same text" in out and "no recurrent layers" in err


def test_what_is_asked_wrongly(root: Path, persona: Persona) -> None:
    code, _, err = persona("inside", cwd=root)
    assert code == 2 and "listening.accept" in err
    code, _, err = persona("inside", "--probe", "listening.nosuch", cwd=root)
    assert code == 2 and "there is no probe" in err
    code, _, err = persona("inside", "--probe", "listening.accept", "--control", "warm", cwd=root)
    assert code == 1 and "no other behavior" in err
