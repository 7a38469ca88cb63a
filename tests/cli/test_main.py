"""Every verb: its help, its envelope, its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from personality import __version__
from personality.cli.main import _VERBS
from personality.manifests.names import VectorLabel
from personality.manifests.repository import Repository
from personality.playground.behaviors import examples
from personality.playground.behaviors import general as general_examples
from personality.versions.changes import add, rescale
from personality.versions.history import History
from personality.versions.state import repository_state

Persona = Callable[..., tuple[int, str, str]]
VERBS = [name for name, _, _ in _VERBS]
COMMAND = [sys.executable, "-m", "personality"]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def start(*arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, persona: Persona) -> None:
    code, out, _ = persona(verb, "--help")
    assert code == 0
    lines = [line.strip(" │") for line in plain(out).splitlines()]
    shown = lines[lines.index("Examples:") :]
    assert len([line for line in shown if line.startswith(f"persona {verb}")]) >= 3
    text = " ".join(lines)
    for option in ("--json", "-C", "--help"):
        assert option in text


def test_help_of_the_whole(persona: Persona) -> None:
    code, out, _ = persona("--help")
    assert code == 0
    for verb in VERBS:
        assert re.search(rf"^[ │]+{verb} ", plain(out), re.MULTILINE), verb
    code, out, err = persona()
    assert code == 2
    assert "Usage" in plain(out + err)


SUCCESSES = [
    ["status"],
    ["log"],
    ["log", "-n", "1"],
    ["vectors"],
    ["show", "listening"],
    ["show", "v2"],
    ["diff", "v1", "v2"],
    ["tag"],
    ["tag", "stable"],
    ["add", "concise", "--scale", "0.5"],
    ["scale", "listening", "-1"],
    ["rm", "listening"],
    ["method", "ties", "--density", "0.5"],
    ["save"],
    ["restore", "v1"],
    ["revert", "v2"],
    ["undo"],
    ["build"],
    ["verify"],
    ["gc", "--dry-run"],
    ["version"],
    ["ask", "v2", "Please rename the logo."],
    ["export", "v2", "out", "--to", "vllm"],
    ["init", "elsewhere", "--base", "base"],
    ["playground", "elsewhere"],
]


@pytest.fixture
def root(repository_copy: Path) -> Path:
    add(Repository(repository_copy), VectorLabel("listening"), 0.8)
    return repository_copy


@pytest.mark.parametrize("command", SUCCESSES, ids=" ".join)
def test_success_as_json(command: list[str], root: Path, persona: Persona) -> None:
    code, out, err = persona(*command, "--json", cwd=root)
    assert code == 0, out + err
    envelope = json.loads(out)
    assert list(envelope) == ["schema", "command", "ok", "data"]
    assert envelope["schema"] == "persona/1"
    assert envelope["command"] == command[0]
    assert envelope["ok"] is True
    assert envelope["data"]
    assert err == ""


@pytest.mark.parametrize("command", [item for item in SUCCESSES if item[0] not in ("playground",)], ids=" ".join)
def test_success_for_people(command: list[str], root: Path, persona: Persona) -> None:
    code, out, err = persona(*command, cwd=root)
    assert code == 0, out + err
    assert out.strip() or command == ["tag"]
    assert "\x1b" not in out + err
    assert "Error" not in err
    for line in out.splitlines():
        assert line == line.rstrip()


FAILURES = [
    (["restore", "v9"], 1, "not-found"),
    (["add", "lisening"], 1, "not-found"),
    (["add", "listening", "--scale", "nan"], 2, "usage"),
    (["add", "listening", "--layers", "0-99"], 1, "incompatible"),
    (["add", "listening", "--layers", "x"], 2, "usage"),
    (["add", "Listening!"], 2, "usage"),
    (["scale", "listening", "inf"], 2, "usage"),
    (["scale", "listening", "much"], 2, "usage"),
    (["scale", "listening"], 2, "usage"),
    (["rm", "concise"], 1, "not-found"),
    (["method", "linear", "--density", "0.5"], 2, "usage"),
    (["method", "ties", "--density", "2"], 2, "usage"),
    (["method", "slurp"], 2, "usage"),
    (["method", "passthrough"], 2, "usage"),
    (["method"], 2, "usage"),
    (["method", "slerp", "--seed", "1"], 2, "usage"),
    (["method", "slerp", "--density", "0.5"], 2, "usage"),
    (["method", "dare_ties", "--density", "0"], 2, "usage"),
    (["method", "della", "--density", "0.1"], 2, "usage"),
    (["method", "dare_ties", "--set", "densty=1"], 2, "usage"),
    (["method", "dare_ties", "--set", "density"], 2, "usage"),
    (["tag", "v7"], 2, "usage"),
    (["tag", "stable", "--delete"], 1, "not-found"),
    (["tag", "--delete"], 2, "usage"),
    (["redo"], 1, "error"),
    (["revert", "v1"], 1, "error"),
    (["show", "listning"], 1, "not-found"),
    (["diff", "v1", "v9"], 1, "not-found"),
    (["import", "polite", "nowhere"], 1, "not-found"),
    (["train", "warm", "--data", "nowhere.jsonl", "--general", "data/general.jsonl"], 1, "not-found"),
    (["train", "warm", "--data", "data/warm.jsonl"], 2, "usage"),
    (["export", "v2", "behaviors"], 1, "error"),
    (["export", "v2", "persona.toml/below"], 1, "error"),
    (["eval", "v2", "--behavior", "mood"], 1, "not-found"),
    (["init", "--base", "base"], 1, "error"),
    (["init", "new", "--base", "./nowhere"], 1, "not-found"),
    (["ask", "v2", " "], 2, "usage"),
    (["log", "-n", "0"], 2, "usage"),
    (["playground", "data"], 1, "error"),
    (["demo", "data"], 1, "error"),
    (["status", "-C", "nowhere"], 1, "not-found"),
    (["status", "-C", "/"], 1, "not-found"),
    (["restoer", "v1"], 2, "usage"),
    (["restore", "v1", "--mesage", "x"], 2, "usage"),
]


@pytest.mark.parametrize(
    ("command", "code", "kind"), FAILURES, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_failure_in_both_forms(command: list[str], code: int, kind: str, root: Path, persona: Persona) -> None:
    before = {
        path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix in (".json", ".toml")
    }
    found, out, err = persona(*command, "--json", cwd=root)
    envelope = json.loads(out)
    assert list(envelope) == ["schema", "command", "ok", "error"]
    assert (envelope["schema"], envelope["command"], envelope["ok"]) == ("persona/1", command[0], False)
    error = envelope["error"]
    assert (found, error["exit_code"], error["kind"]) == (code, code, kind), error
    assert error["message"]
    assert err == ""
    found, out, err = persona(*command, cwd=root)
    assert found == code
    assert out == ""
    assert err.startswith("Error: ")
    assert "\nhint: " in err or not error["hint"]
    assert "Traceback" not in err
    after = {
        path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix in (".json", ".toml")
    }
    after.pop(root / ".persona/cache.json", None)
    before.pop(root / ".persona/cache.json", None)
    assert after == before


def test_errors_name_what_was_probably_meant(root: Path, persona: Persona) -> None:
    for command, meant in (
        (["restoer", "v1"], "restore"),
        (["restore", "v1", "--mesage", "x"], "--message"),
        (["add", "lisening"], "`listening`"),
        (["show", "listning"], "`listening`"),
        (["add", "listening@11"], "`listening@1`"),
    ):
        _, _, err = persona(*command, cwd=root)
        assert meant in err, err


def test_the_folder_can_be_named_before_or_after_the_verb(root: Path, tmp_path: Path, persona: Persona) -> None:
    expected = persona("status", "--json", cwd=root)
    assert expected[0] == 0
    for command in (
        ["-C", str(root), "status", "--json"],
        ["status", "-C", str(root), "--json"],
        ["-C", str(root), "--json", "status"],
        ["--json", "-C", "play", "status"],
    ):
        assert persona(*command, cwd=tmp_path) == expected
    assert persona("status", "--json", cwd=root / "behaviors") == expected


def test_paths_start_where_the_folder_says(root: Path, tmp_path: Path, persona: Persona) -> None:
    code, _, err = persona("-C", str(root), "export", "v2", "out", cwd=tmp_path)
    assert code == 0, err
    assert (root / "out/model.safetensors").is_file()


def test_diff_tells_a_difference_by_its_exit_code(root: Path, persona: Persona) -> None:
    assert persona("diff", "v1", "v2", cwd=root)[0] == 0
    assert persona("diff", "v1", "v2", "--exit-code", cwd=root)[0] == 3
    assert persona("diff", "v2", "head", "--exit-code", cwd=root)[0] == 0
    code, out, _ = persona("diff", "v1", "v2", "--exit-code", "--json", cwd=root)
    assert (code, json.loads(out)["ok"]) == (3, True)


def test_verify_tells_damage_by_its_exit_code(root: Path, persona: Persona) -> None:
    assert persona("verify", cwd=root)[0] == 0
    manifest = Repository(root).manifests()[0]
    path = Repository(root).vector_path(manifest.id)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, out, err = persona("verify", cwd=root)
    assert code == 3
    assert re.search(rf"{manifest.label} +corrupt", out)
    assert err
    code, out, _ = persona("verify", "--json", cwd=root)
    assert code == 3
    assert [item["what"] for item in json.loads(out)["data"]["findings"] if item["status"] != "ok"] == [manifest.label]


def test_verify_compares_an_export_with_versions(root: Path, persona: Persona) -> None:
    assert persona("export", "v2", "out", cwd=root)[0] == 0
    assert persona("verify", "v2", "out", cwd=root)[0] == 0
    assert persona("verify", "v1", "out", cwd=root)[0] == 3
    assert persona("verify", "v1", "nowhere", cwd=root)[0] == 3


def test_a_bug_is_told_from_an_error(root: Path, persona: Persona, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repository: Repository) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Repository, "versions", fail)
    code, out, err = persona("log", cwd=root)
    assert code == 70
    assert "this is a bug in persona: ZeroDivisionError" in err
    assert "Traceback" in err
    code, out, _ = persona("log", "--json", cwd=root)
    assert code == 70
    assert json.loads(out)["error"]["kind"] == "internal"


def test_a_file_that_the_system_refuses(root: Path, persona: Persona) -> None:
    """A folder where a record should be."""
    (root / "versions" / ("0" * 64 + ".json")).mkdir()
    code, _, err = persona("log", cwd=root)
    assert code == 1
    assert "Is a directory" in err
    assert "hint: " in err


def test_both_ways_to_start_it(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("persona")
    for command in (COMMAND, [str(script)]):
        result = subprocess.run([*command, "version"], cwd=tmp_path, capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, f"persona {__version__}\n", "")
    result = subprocess.run([*COMMAND, "status"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "hint: make one: `persona init" in result.stderr


@pytest.mark.parametrize(("variables", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color(root: Path, variables: dict[str, str], colored: bool) -> None:
    """On a terminal: what is written to a real pseudo-terminal."""
    import pty

    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100", **variables}
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, "diff", "v1", "v9"], cwd=root, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    output = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:
            break
        if not block:
            break
        output += block
    os.close(ours)
    assert process.wait() == 1
    assert (b"\x1b[1;31m" in output) == colored
    assert b"Error: " in re.sub(rb"\x1b\[[0-9;]*m", b"", output)


@pytest.mark.parametrize("command", [["log"], ["log", "--json"], ["status"], ["--help"], ["diff", "v1", "--exit-code"]])
def test_a_reader_that_has_gone(root: Path, command: list[str]) -> None:
    repository = Repository(root)
    for number in range(40):
        rescale(repository, "listening", number / 10 + 1, "a message of some length " * 8)
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen([*COMMAND, *command], cwd=root, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, err = process.communicate()
    assert process.returncode == 141
    assert err == b""


def test_an_interrupted_training_leaves_the_repository_as_it_was(root: Path) -> None:
    data, general = root / "data/many.jsonl", root / "data/many-general.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in examples("warm", 1500, seed=5)))
    general.write_text("".join(json.dumps(row) + "\n" for row in general_examples(400, seed=5, behavior="warm")))
    before = repository_state(Repository(root))
    process = start(
        *("train", "warm", "--data", str(data), "--general", str(general), "--probe-rows", "0"),
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Whoever runs the tests in the background may have told all its children to ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(path.is_file() for path in root.glob(".persona/runs/*/toward/../log.jsonl")):  # it has really begun
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == b""
    assert b"Error: stopped after step" in err
    assert b"Traceback" not in err
    assert repository_state(Repository(root)) == replace(before, unfinished=["warm"])
    assert [item.label for item in Repository(root).manifests()] == ["concise@1", "listening@1"]
    assert len(History(Repository(root)).versions) == 2
