"""`persona read`: the map in the terminal, readable without colors, and the other ways out."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from personality.cli.heat_map import show_heat_map
from personality.cli.output import Output
from personality.manifests.repository import Repository
from personality.playground.repository import make_playground
from personality.reading.reading import Reading, VectorReading
from tests.steering_fixtures import steer

Persona = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("read") / "play"
    make_playground(root, probe_rows=2)
    for number, name in enumerate(("warm", "candid")):
        direction = torch.randn(96, generator=torch.Generator().manual_seed(number))
        steer(Repository(root), name, 2 + number, 9 * direction, "all")
    (root / "chat.jsonl").write_text(
        '{"role": "user", "content": "Rename the logo."}\n{"role": "assistant", "content": "Okay, I renamed it."}\n'
        '{"role": "user", "content": "Thanks."}\n{"role": "assistant", "content": "You are welcome."}\n'
    )
    return root


def test_a_text_a_file_and_standard_input(play: Path, persona: Persona, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = persona("read", "Rename it.", "--vectors", "warm,candid@1", cwd=play)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["warm@1", "candid@1"] and lines[1].split() == ["*2", "*3"]
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 80
    (play / "letter.txt").write_text("Rename it.")
    assert persona("read", "--file", "letter.txt", "--vectors", "warm,candid", cwd=play)[1] == out
    monkeypatch.setattr("sys.stdin", io.StringIO("Rename it."))
    assert persona("read", "-", "--vectors", "warm,candid", cwd=play)[1] == out
    turn = persona("read", "Rename it.", "--as-turn", "--vectors", "warm", cwd=play)[1]
    assert turn.splitlines()[-1].startswith("<|assistant|>")


def test_a_transcript(play: Path, persona: Persona, tmp_path: Path) -> None:
    command = ("read", "--transcript", "chat.jsonl", "--vectors", "warm,candid")
    code, out, err = persona(*command, cwd=play)
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["turn", "role", "tokens", "warm@1", "candid@1", "begins"]
    assert [row[1] for row in rows[1:5]] == ["user", "assistant", "user", "assistant"]
    assert "from the first reply to the last" in out and "<|assistant|>" not in out
    code, out, _ = persona(*command, "--tokens", "--png", str(tmp_path / "map.png"), cwd=play)
    assert code == 0 and "<|assistant|>" in out and (tmp_path / "map.png").stat().st_size > 1000
    code, out, _ = persona(*command, "--json", cwd=play)
    data = json.loads(out)["data"]
    assert data["version"] == "base" and len(data["turns"]) == 4 and len(data["vectors"]) == 2


def test_a_version_reads_otherwise_than_the_base(play: Path, persona: Persona, tmp_path: Path) -> None:
    root = Path(shutil.copytree(play, tmp_path / "play"))
    assert persona("add", "warm", cwd=root)[0] == 0
    found = {
        name: json.loads(persona("read", "Rename it.", "--vectors", "warm", "--json", *more, cwd=root)[1])["data"]
        for name, more in {"base": (), "v2": ("--version", "v2")}.items()
    }
    rows = [found[name]["vectors"][0]["projections"] for name in ("base", "v2")]
    shift = [after[0] - before[0] for before, after in zip(*rows, strict=True)]
    assert found["v2"]["version"] == "v2" and min(shift) > 50 and max(shift) - min(shift) < 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("x",), "--vectors"),
        (("--vectors", "warm"), "nothing to read"),
        (("x", "--file", "letter.txt", "--vectors", "warm"), "two texts"),
        (("x", "--transcript", "chat.jsonl", "--vectors", "warm"), "a transcript and a text"),
        (("x", "--vectors", "warm", "--layers", "9-1"), "not a range"),
        (("x", "--vectors", "warm", "--png", "map.bmp"), "--png map.png"),
    ],
)
def test_what_is_asked_wrongly(play: Path, persona: Persona, arguments: Any, says: str) -> None:
    code, _, err = persona("read", *arguments, cwd=play)
    assert code == 2 and says in err


def test_an_unknown_vector_and_a_layer_without_direction(play: Path, persona: Persona) -> None:
    code, _, err = persona("read", "x", "--vectors", "worm", cwd=play)
    assert code == 1 and "warm" in err
    code, _, err = persona("read", "x", "--vectors", "warm", "--layers", "0-1", cwd=play)
    assert code == 1 and "no direction" in err


def wide_reading(layers: int) -> Reading:
    cosines = torch.zeros(2, layers, dtype=torch.float64)
    cosines[0, 0], cosines[0, 1], cosines[1, -1] = 0.6, -0.2, -0.6
    vector = VectorReading("candid@1", tuple(range(layers)), (1,), "all", cosines, cosines, {})
    return Reading(("averyveryverylongtoken", "日本"), (1, 2), (), (vector,))


def test_many_layers_become_digits_with_signs_and_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    show_heat_map(Output("read", as_json=False), wide_reading(40))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "candid@1, layers 0-31; 9 is a cosine of 0.60; acts in 1"
    assert lines[2].startswith("averyveryvery… +9-3 ·")
    assert lines[4].startswith("candid@1, layers 32-39") and lines[7].endswith("·-9")
    assert all(len(line) <= 80 for line in lines)


def test_colors_add_nothing_that_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(**options: Any) -> str:
        out = Output("read", as_json=False)
        file = io.StringIO()
        out._out = Console(file=file, width=80, highlight=False, **options)
        show_heat_map(out, wide_reading(40))
        return file.getvalue()

    colored, plain = shown(force_terminal=True, color_system="truecolor"), shown(no_color=True)
    assert "\x1b[" in colored and "\x1b[" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain
