"""`persona bisect`, `ablate`, `dose` and `tune` as typed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from personality.manifests.repository import Repository

Persona = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(history_repository: Repository, tmp_path: Path) -> Path:
    """Nine versions, with what was measured in them already."""
    shutil.copytree(history_repository.root, tmp_path / "play")
    return tmp_path / "play"


def test_bisect_names_the_version_and_its_change(root: Path, persona: Persona) -> None:
    arguments = ("bisect", "push_back", "--good", "v2", "--bad", "v9", "--rows", "6")
    code, out, err = persona(*arguments, cwd=root)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["version", "push_back"]
    assert [line.split()[0] for line in lines[1:] if line.endswith(("good", "broken"))][::4] == ["v2", "v9"]
    assert "v6 broke it: follows directions better" in lines
    assert lines[-1] == "  + obeying@1 × 0.9"
    assert "v9: broken" in err
    code, out, _ = persona(*arguments, "--json", cwd=root)
    data = json.loads(out)["data"]
    assert code == 0
    assert [item["label"] for item in data["candidates"]] == ["v6"]
    assert data["culprit"] == data["candidates"][0]["version"]
    assert data["looks"][0]["verdict"] == "good"
    code, _, err = persona("bisect", "push_back", "--good", "v9", "--bad", "v2", cwd=root)
    assert code == 2
    assert "v9 was made after v2" in err


def test_ablate_says_who_causes_what(root: Path, persona: Persona) -> None:
    arguments = ("ablate", "v9", "--rows", "6", "--goal", "push_back", "--goal", "listening")
    code, out, err = persona(*arguments, cwd=root)
    assert code == 0, err
    assert "obeying@1 lowers it (-" in next(line for line in out.splitlines() if line.startswith("push_back: obeying"))
    assert "exact, from all 4 compositions" in out
    code, out, _ = persona(*arguments, "--json", cwd=root)
    data = json.loads(out)["data"]
    assert [item["goal"] for item in data["goals"]] == ["push_back", "listening"]
    assert {item["use"] for item in data["goals"][0]["contributions"]} == {"listening@1", "obeying@1"}


def test_dose_draws_a_curve_and_writes_the_range(root: Path, persona: Persona) -> None:
    arguments = ("dose", "listening", "0..1", "--points", "2", "--rows", "6", "--version", "v5")
    code, out, err = persona(*arguments, "--dry-run", cwd=root)
    assert code == 0, err
    assert out.splitlines()[0] == "listening@1 in the recipe of v5"
    assert "● listening, p push_back, g general; ✗ does not hold together" in out
    assert Repository(root).manifests()[1].suggested_scale is None
    code, out, _ = persona(*arguments, "--json", cwd=root)
    data = json.loads(out)["data"]
    assert code == 0
    manifest = next(item for item in Repository(root).manifests() if item.behavior == "listening")
    assert data["written"] == (data["suggested"] is not None)
    assert manifest.suggested_scale == (tuple(data["suggested"]) if data["suggested"] else None)
    code, _, err = persona("dose", "listening", "-1..nan", cwd=root)
    assert code == 2
    assert "`-1..nan` is not a span of scales" in err


def test_tune_shows_the_front_and_records_with_take(root: Path, persona: Persona) -> None:
    arguments = (
        "tune",
        "v9",
        "--maximize",
        "listening",
        "--subject-to",
        "push_back>=0",
        "--rows",
        "4",
        "--seed",
        "3",
    )
    code, out, err = persona(*arguments, "--trials", "3", cwd=root)
    assert code == 0, err
    assert "on the front, by the rows that were for the search:" in out.splitlines()[0]
    assert "  →" in out
    assert "on held-out rows" in out
    code, out, err = persona(*arguments, "--trials", "3", "--take", "-m", "tuned", "--json", cwd=root)
    assert code == 0, err
    data = json.loads(out)["data"]
    assert data["maximize"] == ["listening"]
    assert all(slack >= 0 for slack in data["trials"][data["chosen"]]["slack"].values())
    if data["recorded"]["label"] == "v10":
        assert (root / f"studies/{data['recorded']['version']}.json").is_file()
        assert data["chosen"] != 0
    code, _, err = persona("tune", "--subject-to", "general>-2%", cwd=root)
    assert code == 2
    assert "`general>-2%` is not a constraint" in err
